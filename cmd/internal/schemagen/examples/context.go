// SPDX-License-Identifier: Apache-2.0

package examples

import (
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

func machine() schemas.MachineSpec {
	return schemas.MachineSpec{Arch: "amd64", Backend: "qemu", Start: "warm", Accel: "tcg", CPUs: 1, Memory: 256 << 20}
}

func identity() schemas.Identity {
	return schemas.Identity{
		Hostname: "server-72", MachineID: "20428b761ca31cdd7a4faa60e1c412a6", MAC: mac,
		Uptime: schemas.Duration(180*time.Hour + 42*time.Minute + 30*time.Second), FirstPID: pid,
	}
}

func sample() schemas.Sample {
	return schemas.Sample{SHA256: sampleDigest, Name: "hello", Size: 762424, Type: schemas.SampleType{
		Format: "elf", Arch: "amd64", Description: "ELF 64-bit LSB executable, x86-64, statically linked, not stripped",
		Class: 64, Endianness: "little", Machine: "EM_X86_64", ObjectType: "exec",
	}}
}

func options() schemas.Options {
	return schemas.Options{
		Runtime: schemas.Duration(20 * time.Second), Args: []string{"-v"}, Env: map[string]string{"LANG": "C"},
		Priority: "normal", MaxSample: 100 << 20,
	}
}

func submission() schemas.Submission {
	return schemas.Submission{
		ID: analysis, Tenant: tenant, Profile: "amd64", Sample: sample(), Options: options(),
		Protocol:  "name: short\nsteps:\n  - poweron: {timeout: 30s}\n  - run_sample: {timeout: 10s}\n  - wait: {until: [tree_exited], limit: runtime}\n  - poweroff\n  - start_analysis\n  - wait_analysis: {timeout: 60s}\n",
		Expected:  []string{"behavior", "static"},
		Submitted: start,
	}
}

func sources() []schemas.SourceCoverage {
	return []schemas.SourceCoverage{
		{
			Source: schemas.SourceTrace, Status: schemas.StatusPartial, Reason: "3 records were lost", Segments: 2, Bytes: 70144, Produced: 412, Lost: 3,
			Unreadable: 1, PerCPU: []schemas.CPUCoverage{{CPU: 0, Produced: 412, Lost: 3}},
			Suppressed: map[string]uint64{"petri.behavior.file.open.v1": 12},
		},
		{Source: schemas.SourcePcap, Status: schemas.StatusWhole, Segments: 1, Bytes: 2344, Produced: 10},
		{Source: schemas.SourceStdout, Status: schemas.StatusWhole, Segments: 2, Bytes: int64(len(stdout)), Produced: uint64(len(stdout))},
		{Source: schemas.SourceStderr, Status: schemas.StatusMissing, Reason: "the guest went down before it was read"},
	}
}

func hooks() []schemas.HookCoverage {
	return []schemas.HookCoverage{
		{Name: "console", Runs: 1},
		{Name: "memory", Runs: 1, Failed: 1, Required: true, Error: "dump the guest's memory: deadline exceeded"},
	}
}

func missing() []schemas.MissingTask {
	return []schemas.MissingTask{
		{Analyzer: "behavior", SHA256: ptr(traceDigest), Reason: "timeout"},
		{Analyzer: "summary", Reason: "absent"},
	}
}

func isolation() *schemas.Isolation {
	return &schemas.Isolation{User: schemas.UserOwn, Namespaces: []string{"pid", "net", "ipc", "uts"}}
}

func postPoweron() schemas.PostPoweron {
	return schemas.PostPoweron{
		Machine: machine(), Version: qemu, Kernel: kernel, Template: ptr(templateDigest),
		Image: "7ffb4115fb2afd614d51391aea4ee838785866a807d9db8b37c3ea94654d458b", Took: ms(560),
		Isolation: isolation(),
	}
}

// contextFacts are the context events. Those that no one run shows together
// stand behind those of a usual one.
func contextFacts() []fact {
	type step struct {
		ms     int
		origin schemas.Origin
		data   schemas.Typed
	}
	host, guest := schemas.OriginHost, schemas.OriginGuest
	verb := func(name, from, to string) schemas.Transition {
		return schemas.Transition{Verb: name, From: from, To: to}
	}
	took := func(t schemas.Transition, n int) schemas.Transition {
		t.Took = ms(n)
		return t
	}
	noRAM := func(t schemas.Transition) schemas.Transition {
		t.Memory = &schemas.MemoryState{Note: "nothing in RAM survives, the sample's files and processes among it"}
		return t
	}
	steps := []step{
		{5125, host, schemas.AnalysisSubmitted{Submission: submission(), Attempt: 1}},
		{5127, host, schemas.AnalysisClaimed{Worker: worker, Host: "sandbox-1", Version: "0.1.0"}},
		{11391, host, schemas.PrePoweron{From: "defined", Machine: machine()}},
		{11954, host, postPoweron()},
		{11955, guest, schemas.GuestReady{Agent: 1, Kernel: kernel, Tracer: schemas.Tracer{Backend: "ebpf"}, Identity: identity()}},
		{12086, host, schemas.IPAddress{Address: address, MAC: mac, Lease: "dhcp"}},
		{12088, host, schemas.RunSample{Path: path, Command: []string{path, "-v"}, Env: map[string]string{"LANG": "C"}, Dir: "/root", User: "root"}},
		{12344, guest, schemas.SampleStarted{PID: pid, Path: path, SHA256: sampleDigest}},
		{12389, guest, schemas.SampleExited{Reason: "exited", ExitCode: ptr(0), Ran: ms(60), Left: 1}},
		{12400, host, verb("pre_pause", "running", "paused")},
		{12402, host, took(verb("post_pause", "running", "paused"), 2)},
		{12403, host, schemas.Custom{Name: schemas.EventSnapshotsCapture}},
		{13028, host, verb("pre_resume", "paused", "running")},
		{13043, host, took(verb("post_resume", "paused", "running"), 15)},
		{13045, host, verb("pre_shutdown", "running", "shutdown")},
		{13263, host, took(verb("post_shutdown", "running", "shutdown"), 218)},
		{13931, host, schemas.StartAnalysis{
			Artifacts: []schemas.AnnouncedArtifact{
				{Kind: schemas.KindConsole, SHA256: stdoutDigest, Occurrences: 1},
				{Kind: schemas.KindDropped, SHA256: droppedDigest, Occurrences: 2},
				{Kind: schemas.KindSample, SHA256: sampleDigest, Occurrences: 1},
				{Kind: schemas.KindTrace, SHA256: traceDigest, Occurrences: 1},
			},
			Sources: sources(), Hooks: hooks(),
		}},
		{13934, host, schemas.WaitAnalysis{Timeout: ms(60_000), Expected: []string{"behavior", "static"}}},
		{13940, host, schemas.AnalysisCompleted{Missing: missing()}},
		{14100, host, schemas.AnalysisAmended{Analyzer: "behavior", SHA256: ptr(traceDigest), Run: schemas.LiveRun}},
		{90_000, host, schemas.RunAdopted{Run: "r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA", By: "root@sandbox-1"}},

		{12087, host, schemas.GateAnswered{Gate: "approve", Event: analysis + "/" + contextID(6), Answer: "timeout", Effect: schemas.GateGo, Waited: ms(10_000)}},
		{12352, host, schemas.ControlDecided{
			Finding: analysis + "/finding/live/static/" + sampleDigest.Token() + "/0", Analyzer: "static",
			Action: schemas.ControlExtend, Granted: true, Reason: "20s of 30s: the budget is used up", Effect: "the wait may last 20s longer",
		}},
		{12350, host, schemas.Exec{Command: []string{"uname", "-a"}, ExitCode: 0, Stdout: "Linux server-72 " + kernel + " x86_64 GNU/Linux\n", Cut: 512}},
		{12360, host, schemas.MachineOff{State: "crashed", Reason: "guest-panic"}},
		{12361, guest, schemas.Fault{Text: "the guest's agent sent a frame of an unknown kind"}},
		{12370, host, schemas.LogAway{For: ms(1843)}},
		{12380, host, schemas.HookFailed{Hook: "memory", Event: schemas.EventSnapshotsCapture, Error: "dump the guest's memory: deadline exceeded", Required: true}},
		{12381, host, schemas.StepFailed{Step: 8, Name: "shutdown", Error: "shutdown: deadline exceeded", OnFailure: "poweroff"}},
		{12382, host, schemas.Transition{Verb: "pre_poweroff", From: "running", To: "off", Reason: "cancelled by petri cancel"}},
		{12383, host, schemas.Transition{Verb: "post_poweroff", From: "running", To: "off", Reason: "cancelled by petri cancel", Late: ms(12)}},
		{12384, host, noRAM(verb("pre_restart", "running", "running"))},
		{12385, host, took(noRAM(verb("post_restart", "running", "running")), 1720)},
		{12386, host, schemas.AnalysisFailed{Reason: "machine", Error: "poweron: the guest did not answer within 30s"}},
		{13934, host, schemas.WaitAnalysisV1{Deadline: at(73934), Expected: []string{"behavior", "static"}}},
		{12387, host, schemas.AnalysisCancelled{By: "petri cancel"}},
		{12388, host, schemas.Custom{Name: "custom", Payload: map[string]string{"note": "halfway"}}},
	}
	for _, f := range []schemas.FailedTransition{
		{Verb: "failed_poweron", State: "defined", Error: "the guest did not answer within 30s"},
		{Verb: "failed_pause", State: "running", Error: "ask QEMU to stop: deadline exceeded"},
		{Verb: "failed_resume", State: "paused", Error: "ask QEMU to continue: the machine is gone"},
		{Verb: "failed_shutdown", State: "running", Error: "the guest did not power off within 10s"},
		{Verb: "failed_poweroff", State: "running", Error: "ask QEMU to quit: deadline exceeded"},
		{Verb: "failed_restart", State: "running", Error: "the guest did not answer within 30s"},
	} {
		steps = append(steps, step{12390, host, f})
	}
	steps = append(steps,
		step{12390, guest, schemas.TreeExited{}},
		step{12391, host, schemas.PreDumpMemory{Bytes: 512 << 20}},
		step{12392, host, schemas.PreExec{Command: []string{"uname", "-a"}, Timeout: ms(10000)}},
		step{12393, guest, schemas.PossibleTampering{Call: "bpf", Request: "BPF_PROG_GET_NEXT_ID", ABI: "amd64", PID: pid, Comm: "hello", Records: 211}},
	)
	var facts []fact
	for i, s := range steps {
		facts = append(facts, fact{data: s.data, id: contextID(i), at: at(s.ms), origin: s.origin})
	}
	return facts
}
