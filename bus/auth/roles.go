// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"fmt"
	"slices"

	"github.com/nats-io/jwt/v2"

	"github.com/petri-sandbox/petri/schemas"
)

// A Role is what a process or a person does on the bus, and so what its
// credentials allow. The zero value is no role.
type Role string

// The roles.
const (
	Bus      Role = "bus"      // registrar, desk, runs, projections: everything
	Admin    Role = "admin"    // a person who runs Petri: everything
	Clerk    Role = "clerk"    // commits what analyzers hand in
	Archiver Role = "archiver" // moves ended analyses out of the log
	Sandboxd Role = "sandboxd" // runs analyses
	Analyzer Role = "analyzer" // answers tasks; one user per analyzer
	Reporter Role = "reporter" // writes reports
	SIEM     Role = "siem"     // hears what is found, nothing else
	User     Role = "user"     // asks the desk for its tenant, and watches; one user per tenant
)

// Roles lists all roles in a fixed order.
func Roles() []Role {
	return []Role{Bus, Admin, Clerk, Archiver, Sandboxd, Analyzer, Reporter, SIEM, User}
}

// named reports what a user of the role is named by; empty: there is one.
func (r Role) named() string {
	switch r {
	case Analyzer:
		return "analyzer"
	case User:
		return "tenant"
	}
	return ""
}

// unnamed are the roles of which an installation has one user each.
func unnamed() []Role {
	return slices.DeleteFunc(Roles(), func(r Role) bool { return r.named() != "" })
}

// UserName is the name of a role's user on the bus, and of its file. name is
// that of the analyzer or of the tenant; other roles have none.
func UserName(r Role, name string) (string, error) {
	if !slices.Contains(Roles(), r) {
		return "", fmt.Errorf("role %.40q is none of %v", r, Roles())
	}
	what := r.named()
	switch {
	case what == "" && name != "":
		return "", fmt.Errorf("role %s has no name, but %.40q is given", r, name)
	case what == "":
		return string(r), nil
	case r == Analyzer:
		if err := schemas.CheckAnalyzer(name); err != nil {
			return "", err
		}
	default:
		if err := schemas.CheckTenant(name); err != nil {
			return "", err
		}
	}
	return string(r) + "-" + name, nil
}

// InboxPrefix is where a user's answers come: nobody else can listen there.
func InboxPrefix(user string) string { return "_INBOX_" + user }

// Permissions are the subjects that a user may publish to and subscribe to.
// What is not listed is denied.
type Permissions struct {
	Publish   []string
	Subscribe []string
	Deny      []string // of what may be published
	Respond   bool     // to the requests that it is sent
}

const api = "$JS.API."

// reading is what it takes to read whole streams message by message: any client
// of a stream needs its description too.
func reading(streams ...string) []string {
	var out []string
	for _, s := range streams {
		out = append(out, api+"STREAM.INFO."+s, api+"STREAM.MSG.GET."+s, api+"DIRECT.GET."+s, api+"DIRECT.GET."+s+".>")
	}
	return out
}

// readingAll is what it takes to read every stream.
var readingAll = []string{api + "STREAM.INFO.*", api + "STREAM.MSG.GET.*", api + "DIRECT.GET.>", api + "CONSUMER.INFO.*.*"}

// kept are the streams out of which the clerk may take nothing: all but analyzers'
// uploads, whose names no pattern can say.
var kept = []string{
	"LOG", "INBOX", "JOBS", "RUNS", "DEAD", "OBJ_ART", "OBJ_REP", "OBJ_ARC",
	"KV_REGISTRY", "KV_LEASE", "KV_ROOM", "KV_STATE", "KV_ARCHIVE", "KV_RUNS", "KV_MEMO", "KV_ATTEMPTS", "KV_ANALYZERS", "KV_PROFILES",
}

// tasksOf is what it takes to be one analyzer.
func tasksOf(name string) []string {
	live, run := "az-"+name+"-live", "az-"+name+"-run"
	// Its own uploads it may look up, but not have sent: the server sends them
	// where it is told to, and that may be a subject of the log.
	out := []string{api + "STREAM.INFO.OBJ_UP-" + name, api + "STREAM.MSG.GET.OBJ_UP-" + name,
		"reg." + name, "unreg." + name, "in." + name + ".*", "$KV.REGISTRY." + name + ".>", "$O.UP-" + name + ".>"}
	return append(out,
		api+"CONSUMER.INFO.LOG."+live, api+"CONSUMER.MSG.NEXT.LOG."+live, "$JS.ACK.LOG."+live+".>",
		"dead.LOG."+live, "dead.RUNS."+run, // a task that it cannot read
		api+"CONSUMER.INFO.RUNS."+run, api+"CONSUMER.MSG.NEXT.RUNS."+run, "$JS.ACK.RUNS."+run+".>")
}

// PermissionsOf returns what a role's user may do. name is that of the tenant or
// of the analyzer; a process that runs several analyzers lists them.
//
// Three things cannot be said in subjects, and follow from what can: who may
// read a stream by sequence reads all of it; who may purge a stream may purge
// all of it, so that only the bus may; and who may ask for the next message of
// some consumers of a stream by a wildcard may ask every one of them, so that
// analyzers and users may not.
func PermissionsOf(r Role, name string, analyzers ...string) (Permissions, error) {
	user, err := UserName(r, name)
	if err != nil {
		return Permissions{}, err
	}
	p := Permissions{Subscribe: []string{InboxPrefix(user) + ".>"}, Publish: []string{api + "INFO"}}
	switch r {
	case Bus, Admin:
		return Permissions{Publish: []string{">"}, Subscribe: []string{">"}, Respond: true}, nil
	case Clerk:
		p.Publish = append(p.Publish, readingAll...)
		p.Publish = append(p.Publish,
			api+"CONSUMER.MSG.NEXT.INBOX.clerk", "$JS.ACK.INBOX.clerk.>", "dead.INBOX.clerk.*", // the bus has made its consumer
			"petri.*.*.artifact.*.*.*", "petri.*.*.derivation.>", "petri.*.*.finding.>", "petri.*.*.refinding.>", "petri.*.*.receipt.*.*.*",
			"petri.*.*.context."+schemas.EventAmended, "$O.ART.>", "$KV.MEMO.*", "run.>",
			api+"STREAM.PURGE.*") // an upload that it has taken over
		for _, s := range kept {
			p.Deny = append(p.Deny, api+"STREAM.PURGE."+s)
		}
	case Archiver:
		p.Publish = append(p.Publish, readingAll...)
		for _, kv := range []string{"KV_STATE", "KV_ARCHIVE", "KV_RUNS"} {
			p.Publish = append(p.Publish, api+"CONSUMER.CREATE."+kv+".>", api+"CONSUMER.DELETE."+kv+".*")
		}
		p.Publish = append(p.Publish,
			api+"CONSUMER.CREATE.LOG.>", api+"CONSUMER.MSG.NEXT.LOG.*", api+"STREAM.PURGE.LOG", api+"STREAM.PURGE.OBJ_ARC",
			"$JS.FC.>", "$O.ARC.>", "$KV.ARCHIVE.>", "$KV.STATE.>")
	case Sandboxd:
		p.Respond = true
		p.Subscribe = append(p.Subscribe, "ctl.*.*.*")
		p.Publish = append(p.Publish, reading("LOG", "JOBS", "OBJ_ART", "OBJ_ARC", "KV_ARCHIVE", "KV_LEASE", "KV_REGISTRY", "KV_PROFILES", "KV_ANALYZERS")...)
		p.Publish = append(p.Publish,
			"petri.*.*.context.*", "petri.*.*.segment.*.*", "petri.*.*.artifact.*.*.*", "petri.*.*.checkpoint.*",
			api+"DIRECT.GET.KV_ROOM.$KV.ROOM.now", "live.petri.*.*.behavior.*.*", "gate.*.*", "job.*.*.*", "dead.JOBS.jobs", "$O.ART.>", "$KV.LEASE.*",
			api+"CONSUMER.CREATE.LOG.>", api+"CONSUMER.INFO.LOG.*", api+"CONSUMER.MSG.NEXT.LOG.*",
			api+"CONSUMER.CREATE.KV_REGISTRY.>", api+"CONSUMER.DELETE.KV_REGISTRY.*", api+"CONSUMER.CREATE.KV_LEASE.>", "$JS.FC.>",
			api+"CONSUMER.CREATE.JOBS.>", api+"CONSUMER.INFO.JOBS.*", api+"CONSUMER.MSG.NEXT.JOBS.*", "$JS.ACK.JOBS.>",
		)
	case Analyzer:
		if len(analyzers) == 0 {
			analyzers = []string{name}
		}
		p.Publish = append(p.Publish, reading("LOG", "OBJ_ART", "OBJ_ARC", "KV_ARCHIVE", "KV_RUNS", "KV_ANALYZERS")...)
		p.Publish = append(p.Publish, api+"DIRECT.GET.KV_MEMO.$KV.MEMO.*") // by key, which is a hash of the work
		p.Publish = append(p.Publish, api+"STREAM.MSG.GET.KV_ATTEMPTS", "$KV.ATTEMPTS."+name+".*")
		for _, a := range analyzers {
			if err := schemas.CheckAnalyzer(a); err != nil {
				return Permissions{}, err
			}
			p.Publish = append(p.Publish, tasksOf(a)...)
		}
	case Reporter:
		p.Publish = append(p.Publish, reading("LOG", "OBJ_ART", "OBJ_REP", "OBJ_ARC", "KV_ARCHIVE")...)
		p.Publish = append(p.Publish, "petri.*.*.report.*", "$O.REP.>", // the bus has made its consumer
			api+"CONSUMER.INFO.LOG.reporter", api+"CONSUMER.MSG.NEXT.LOG.reporter", "$JS.ACK.LOG.reporter.>")
	case SIEM:
		p.Publish = nil
		p.Subscribe = []string{"live.petri.*.*.finding.>"}
	case User:
		p.Subscribe = append(p.Subscribe, "live.petri."+name+".>")
		p.Publish = append(p.Publish, "ask."+name+".>",
			api+"DIRECT.GET.KV_ROOM.$KV.ROOM.now")
	}
	return p, nil
}

// claim is what the servers read out of a user's credentials.
func (p Permissions) claim() jwt.Permissions {
	var c jwt.Permissions
	c.Pub.Allow, c.Pub.Deny, c.Sub.Allow = p.Publish, p.Deny, p.Subscribe
	if len(p.Publish) == 0 {
		c.Pub.Deny = []string{">"} // an empty list would allow all
	}
	if p.Respond {
		c.Resp = &jwt.ResponsePermission{MaxMsgs: 1, Expires: 0}
	}
	return c
}
