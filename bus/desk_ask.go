// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// What a tenant's user may ask the desk. The subject is ask.<tenant>.<what>; the
// server's permissions see to it that the tenant is the user's own.
const (
	askLook      = "look"      // a message of the log, or the archive's entry of an analysis
	askPage      = "page"      // the next events of the log under a subject
	askStat      = "stat"      // what the store knows of a digest that an analysis names
	askChunk     = "chunk"     // one frame of such an object
	askList      = "list"      // the analyses
	askFind      = "find"      // artifacts by the beginning of their digest
	askTombstone = "tombstone" // deleted analyses by the beginning of their id
	askCancel    = "cancel"    // the end of an analysis
	askSubmit    = "submit"    // a session that takes a sample, and queues it
)

const deskPrefix = "ask."

// maxAsk bounds a question in bytes; the longest has a submission.
const maxAsk = MaxEvent + 4<<10

// deskAsk is the body of a question. Each kind of question has its own fields.
type deskAsk struct {
	Last string `json:"last,omitempty"` // look: the last message of a subject
	Next string `json:"next,omitempty"` // look, page: the next of a subject
	Seq  uint64 `json:"seq,omitempty"`  // look, page, chunk: from there on

	Bucket   string         `json:"bucket,omitempty"`   // stat, chunk
	Analysis string         `json:"analysis,omitempty"` // stat, chunk, cancel
	Digest   schemas.Digest `json:"digest,omitzero"`    // stat, chunk

	Limit  int    `json:"limit,omitempty"`  // list; 0: all
	Skip   int    `json:"skip,omitempty"`   // list: so many are known
	Prefix string `json:"prefix,omitempty"` // find, tombstone
	By     string `json:"by,omitempty"`     // cancel

	Submission *schemas.Submission `json:"submission,omitempty"` // submit
}

// errBadAsk says that a question is none.
var errBadAsk = errors.New("the desk does not understand the question")

// parseAsk reads a question and checks that it is about nobody but the tenant.
func parseAsk(subject string, body []byte) (tenant, what string, a deskAsk, err error) {
	rest, ok := strings.CutPrefix(subject, deskPrefix)
	tenant, what, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 {
		return "", "", a, errBadAsk
	}
	if err := schemas.CheckTenant(tenant); err != nil {
		return "", "", a, errors.Join(errBadAsk, err)
	}
	if len(body) > maxAsk {
		return "", "", a, fmt.Errorf("%w: it has %d bytes, more than %d", errBadAsk, len(body), maxAsk)
	}
	if err := schemas.Decode(body, &a, true); err != nil {
		return "", "", a, fmt.Errorf("%w: %w", errBadAsk, err)
	}
	if err := a.check(tenant, what); err != nil {
		return "", "", a, fmt.Errorf("%w: %w", errBadAsk, err)
	}
	return tenant, what, a, nil
}

func (a *deskAsk) check(tenant, what string) error {
	switch what {
	case askLook:
		if (a.Last == "") == (a.Next == "") {
			return errors.New("either the last message of a subject or the next")
		}
		_, err := streamFor(tenant, a.Last+a.Next)
		return err
	case askPage:
		stream, err := streamFor(tenant, a.Next)
		if err == nil && stream != streamLog {
			err = fmt.Errorf("there are no pages of %s", stream)
		}
		return err
	case askStat, askChunk:
		switch a.Bucket {
		case bucketArtifacts, bucketReports, bucketArchive:
		default:
			return fmt.Errorf("there is no bucket %.40q", a.Bucket)
		}
		return schemas.CheckID(a.Analysis)
	case askList:
		if a.Limit < 0 || a.Skip < 0 {
			return errors.New("a number is negative")
		}
		return nil
	case askFind:
		if len(a.Prefix) > 64 || strings.Trim(a.Prefix, "0123456789abcdef") != "" {
			return fmt.Errorf("%.80q begins no digest", a.Prefix)
		}
		return nil
	case askTombstone:
		if len(a.Prefix) > 26 {
			return fmt.Errorf("%.80q begins no id", a.Prefix)
		}
		return nil
	case askCancel:
		return schemas.CheckID(a.Analysis)
	case askSubmit:
		if a.Submission == nil {
			return errors.New("there is no submission")
		}
		if a.Submission.Tenant != tenant {
			return fmt.Errorf("a submission for tenant %.40q", a.Submission.Tenant)
		}
		return checkSubmission(a.Submission)
	}
	return fmt.Errorf("nobody knows what %.40q is", what)
}

// maxSubject bounds a subject in bytes.
const maxSubject = 512

// streamFor says in which stream a subject lies, which may have wildcards behind
// the tenant. Only what is the tenant's own does in any.
func streamFor(tenant, subject string) (string, error) {
	if len(subject) > maxSubject {
		return "", fmt.Errorf("a subject of %d bytes", len(subject))
	}
	if id, ok := strings.CutPrefix(subject, "$KV."+kvArchive+"."+tenant+"."); ok {
		return "KV_" + kvArchive, schemas.CheckID(id)
	}
	if id, ok := strings.CutPrefix(subject, tombstones+tenant+"."); ok {
		return streamLog, schemas.CheckID(id)
	}
	rest, ok := strings.CutPrefix(subject, logPrefix+tenant+".")
	if !ok {
		return "", fmt.Errorf("%.80q is not the tenant's", subject)
	}
	tokens := strings.Split(rest, ".")
	for i, t := range tokens {
		last := i == len(tokens)-1
		if t != "*" && (t != ">" || !last) && (t == "" || strings.Trim(t, tokenLetters+"-_") != "") {
			return "", fmt.Errorf("%.80q is no subject", subject)
		}
	}
	return streamLog, nil
}

// deskError is an answer that says why there is none.
type deskError struct {
	Code    string        `json:"code"`
	Text    string        `json:"text"`
	Waiting uint64        `json:"waiting,omitempty"`       // of a full queue
	Retry   time.Duration `json:"retry_after_ns,omitzero"` // of a full queue
}

// Codes of the errors that whoever asks branches on.
const (
	deskNotFound = "not_found"
	deskDenied   = "denied"
	deskCorrupt  = "corrupt"
	deskTooLarge = "too_large"
	deskQueue    = "queue_full"
	deskFull     = "full"
	deskAgain    = "again" // later
	deskGone     = "gone"  // a session that is no more
	deskRefused  = "refused"
)

var deskCodes = []struct {
	code string
	err  error
}{
	{deskNotFound, ErrNotFound}, {deskDenied, ErrDenied}, {deskCorrupt, ErrCorrupt}, {deskTooLarge, ErrTooLarge},
	{deskFull, ErrFull}, {deskGone, errSessionGone}, {deskRefused, errBadAsk},
}

// newDeskError encodes an error for whoever asked. What is none of the codes is
// the desk's own trouble: it is asked again.
func newDeskError(err error) deskError {
	e := deskError{Code: deskAgain, Text: oneLine(err.Error())}
	var busy *BusyError
	if errors.As(err, &busy) {
		e.Code, e.Waiting, e.Retry = deskQueue, busy.Waiting, busy.Retry
		return e
	}
	for _, c := range deskCodes {
		if errors.Is(err, c.err) {
			e.Code = c.code
			break
		}
	}
	return e
}

// told is an error in the desk's words.
type told struct {
	text string
	is   error
}

func (t told) Error() string { return t.text }
func (t told) Unwrap() error { return t.is }

// err is what the asker makes of it.
func (e *deskError) err() error {
	if e.Code == deskQueue {
		return &BusyError{Waiting: e.Waiting, Retry: e.Retry}
	}
	for _, c := range deskCodes {
		if c.code == e.Code {
			return told{e.Text, c.err}
		}
	}
	return passing{errors.New("the desk: " + e.Text)}
}
