// SPDX-License-Identifier: Apache-2.0

package examples

import (
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// documents are the examples of documents, by the name of their schema.
func documents() map[string]any {
	return map[string]any{
		schemas.Report{}.EventType(): report(),
		schemas.ManifestSchema: schemas.Manifest{
			Schema: schemas.ManifestSchema, Source: schemas.SourceTrace, MediaType: schemas.TraceMediaType,
			Segments: []schemas.ManifestSegment{
				{SHA256: segmentDigests[0], Size: 65536, First: 0, Records: 380},
				{SHA256: segmentDigests[1], Size: 4608, First: 380, Records: 29},
			},
			Size: 70144, Coverage: sources()[0],
		},
		schemas.DropsSchema: schemas.DropList{Schema: schemas.DropsSchema, Files: []schemas.DroppedFile{
			{FileMeta: dropped(), Type: "file", Size: 26, SHA256: ptr(droppedDigest), Stored: true},
			{
				FileMeta: schemas.FileMeta{Path: "/tmp/link", Mode: 0o777, Modified: at(12371), Change: "created", Target: "/etc/passwd"},
				Type:     "link", Size: 11, Reason: "symbolic link",
			},
		}, Omitted: 2},
		schemas.ControlSchema:    schemas.ControlRequest{Action: schemas.ControlExtend, Duration: ms(30_000), Reason: "the sample sleeps before it acts"},
		schemas.GateAnswerSchema: schemas.GateAnswer{Decision: schemas.GateStop, Reason: "the customer's quota is used up"},
		schemas.RegisteredSchema: schemas.Registered{Stream: "LOG", Consumer: "az-static-live", Runs: "az-static-run", Uploads: "UP-static", Together: 32},
		schemas.DefinitionSchema: schemas.Definition{
			Schema: schemas.DefinitionSchema, Name: "hosts", Version: "1.0.0", Kinds: []schemas.Kind{schemas.KindPcap},
			Argv: []string{"/usr/bin/python3", "/usr/local/lib/petri/hosts.py", "{file}"}, Dir: "/usr/local/lib/petri",
			Memory: 256 << 20, CPU: ms(30_000), Timeout: ms(60_000), MaxInput: 1 << 30, MaxOutput: 8 << 20, Processes: 16,
			Files: []schemas.FileDigest{
				{Path: "/usr/bin/python3", SHA256: schemas.Sum([]byte("python3"))},
				{Path: "/usr/local/lib/petri/hosts.py", SHA256: schemas.Sum([]byte("hosts.py"))},
			},
		},
		schemas.ProfileSchema: schemas.Profile{Schema: schemas.ProfileSchema, Name: "amd64", Expected: []string{"behavior", "static"}},
		schemas.TemplateSchema: schemas.Template{
			Schema: schemas.TemplateSchema, Version: qemu,
			Command: []string{"-machine", "q35,memory-backend=ram0", "-accel", "tcg,thread=single", "-m", "256M"},
			Image:   postPoweron().Image,
			Kernel:  schemas.Sum([]byte("kernel")), Initramfs: schemas.Sum([]byte("initramfs")),
			RAM: schemas.Sum([]byte("ram")), State: schemas.Sum([]byte("state")),
		},
		schemas.StaticSchema: schemas.StaticResult{
			Schema: schemas.StaticSchema, Size: 762424, MD5: "5199980cdc2339a8f778058f6d1b791b", SHA1: "5d1a82aef999561c54f95d66c160a29ed4edcfc3",
			SHA256: sampleDigest, Entropy: schemas.Entropy{Whole: 6.0991, BlockSize: 4096, Blocks: []float64{0.943, 6.22, 6.0652}},
			Type: sample().Type, ELF: elf(),
		},
		schemas.BehaviorSchema: schemas.BehaviorResult{
			Schema: schemas.BehaviorSchema, Processes: processes(), Files: files(), Network: network(),
			Syscalls: map[string]uint64{"openat": 3, "write": 2, "i386:write": 1}, Records: 409, Bad: 1,
			Omitted: map[string]int{"files": 4}, Gaps: []string{"the sample used io_uring: what was done through it is not shown"},
		},
	}
}

func processes() []schemas.Process {
	return []schemas.Process{
		{PID: pid, Start: 4_398_103_552, Parent: 1, ParentAt: 31_000_000, Path: path, Argv: []string{path, "-v"}, Comm: "hello", End: ptr(uint64(4_458_103_552)), ExitCode: ptr(0), Syscalls: 388},
		{PID: pid + 1, Start: 4_411_020_114, Parent: pid, ParentAt: 4_398_103_552, Path: "/bin/sh", Argv: []string{"sh", "-c", "id > /tmp/out"}, Comm: "sh", Signal: "SIGKILL", Threads: 1, Syscalls: 21},
	}
}

func files() []schemas.FileActivity {
	return []schemas.FileActivity{
		{Path: "/etc/cron.d/hello", Actions: []string{"create", "write"}, Opens: 1, Written: 26, Dropped: ptr(droppedDigest), PIDs: []int{pid}},
		{Path: "/etc/ld.so.preload", Actions: []string{"open"}, Opens: 1, Failed: 1, Errors: []string{"ENOENT"}, PIDs: []int{pid}},
	}
}

func network() []schemas.NetworkActivity {
	return []schemas.NetworkActivity{
		{Action: "connect", Family: "AF_INET", Type: "SOCK_STREAM", Address: "203.0.113.9", Port: 23, Count: 2, Errors: []string{"EINPROGRESS"}, PIDs: []int{pid}},
	}
}

func elf() *schemas.ELFIdentity {
	return &schemas.ELFIdentity{
		Class: 64, Endianness: "little", Machine: "EM_X86_64", Arch: "amd64", OSABI: "GNU/Linux", ObjectType: "exec", Entry: 4199728,
		Linkage: "static", Stripped: ptr(false), BuildID: "e5530b281305d9d96f620b9288e03dd4f2761adc", Relro: "partial",
		Segments: []schemas.ELFSegment{
			{Type: "PT_LOAD", Flags: "rwx", Offset: 4096, VAddr: 4198400, FileSz: 490753, MemSz: 490753, Entropy: ptr(6.4337)},
			{Type: "PT_GNU_STACK", Flags: "rw-"},
		},
		Sections:  []schemas.ELFSection{{Name: ".text", Type: "SHT_PROGBITS", Flags: "ax", Addr: 4198400, Offset: 4096, Size: 488769}},
		Overlay:   &schemas.ELFRange{Offset: 761856, Size: 568},
		Anomalies: []schemas.ELFAnomaly{{Name: "segment_rwx", Detail: "segment 0 is writable and executable"}},
		Omitted:   &schemas.ELFOmitted{Sections: 31},
	}
}

func report() schemas.Report {
	s := submission()
	return schemas.Report{
		SchemaVersion: schemas.ReportVersion,
		Analysis: schemas.ReportAnalysis{
			ID: analysis, Tenant: tenant, Submission: analysis, Attempt: 1, Submitted: start, Claimed: ptr(at(5127)), Ended: ptr(at(13940)),
			Worker: worker, Version: "0.1.0", Options: s.Options, Protocol: schemas.Sum([]byte(s.Protocol)), Amended: 1,
		},
		History: []schemas.ReportHistory{
			{Time: at(13940), Event: schemas.EventCompleted, Outcome: schemas.OutcomeIncomplete, Verdict: schemas.VerdictUndetermined, Findings: 1},
			{Time: at(90_000), Event: schemas.EventRunAdopted, Run: "r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA", By: "root@sandbox-1", Outcome: schemas.OutcomeIncomplete, Verdict: schemas.VerdictUndetermined, Findings: 2},
		},
		Sample:  s.Sample,
		Outcome: schemas.ReportOutcome{Value: schemas.OutcomeIncomplete, Reasons: []string{"trace is partial: 3 records were lost"}},
		Verdict: schemas.ReportVerdict{Value: schemas.VerdictUndetermined, Reasons: []string{"no rules are in force"}},
		Coverage: schemas.ReportCoverage{
			Gaps: []string{"trace is partial: 3 records were lost"}, Sources: sources(), Hooks: hooks(),
			Analyzers: []schemas.AnalyzerCoverage{
				{Name: "behavior", Expected: true, Status: "missing", Tasks: 1, Missing: missing()[:1]},
				{Name: "static", Version: "1.0.0", Expected: true, Status: "done", Tasks: 2, Done: 1, Skipped: 1},
			},
			Steps:   []schemas.StepFailed{{Step: 8, Name: "shutdown", Error: "shutdown: deadline exceeded", OnFailure: "poweroff"}},
			Omitted: map[string]int{"files": 4},
		},
		Machine: schemas.ReportMachine{
			Spec: ptr(machine()), Version: qemu, Kernel: kernel, Image: postPoweron().Image, Template: ptr(templateDigest),
			Identity: ptr(identity()), Tracer: &schemas.Tracer{Backend: "ebpf"}, Address: address,
		},
		Timeline: []schemas.TimelineEntry{
			{Time: at(5125), Event: schemas.EventSubmitted, Origin: schemas.OriginHost, Detail: "hello"},
			{Time: at(12344), Event: schemas.EventSampleStarted, Origin: schemas.OriginGuest, Detail: "pid 1767"},
			{Time: at(13940), Event: schemas.EventCompleted, Origin: schemas.OriginHost},
		},
		Console:   schemas.ReportConsole{Stdout: stdout, ExitCode: ptr(0), Reason: "exited"},
		Processes: processes(),
		Files:     files(),
		Network:   schemas.ReportNetwork{Address: address, MAC: mac, Frames: 10, Pcap: ptr(pcapDigest), Connections: network()},
		Findings:  []schemas.ReportFinding{{Analyzer: "static", Version: "1.0.0", SHA256: ptr(sampleDigest), Finding: finding()}},
		Artifacts: []schemas.Artifact{{Kind: schemas.KindSample, SHA256: sampleDigest, Size: 762424, Name: "hello"}, artifact()},
		Analyzers: []schemas.ReportRun{{
			Analyzer: "static", Version: "1.0.0", SHA256: ptr(sampleDigest), Kind: schemas.KindSample, Status: schemas.TaskDone,
			Findings: 1, Result: result(), Took: schemas.Duration(63 * time.Millisecond),
		}},
	}
}
