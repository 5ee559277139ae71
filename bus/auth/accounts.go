// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// Names of the keys of an installation, which are those of their files too.
const (
	operatorKey = "operator"
	systemKey   = "sys"
	petriKey    = "petri"
)

// A roleAccount is what users of a role have in common, apart from the account
// that has the streams. What it may publish goes there as a request, of which the
// server keeps for itself where the answer goes: in one account a client could
// have answers stored in the log by naming a subject of it.
type roleAccount struct {
	key      string   // its name is that in capitals
	role     Role     // whose users are its own
	services []string // subjects that they publish to
	streams  []string // subjects that they hear
}

var roleAccounts = []roleAccount{
	{"analyzers", Analyzer, []string{
		api + "INFO", api + "STREAM.>", api + "CONSUMER.INFO.>", api + "CONSUMER.MSG.NEXT.>", api + "DIRECT.GET.>", "$JS.ACK.>",
		"$KV.REGISTRY.>", "$KV.ATTEMPTS.>", "$O.>", "in.>", "reg.*", "unreg.*", "dead.>",
	}, nil},
	{"clerks", Clerk, []string{
		api + "INFO", api + "STREAM.>", api + "CONSUMER.INFO.>", api + "CONSUMER.MSG.NEXT.>", api + "DIRECT.GET.>", "$JS.ACK.>",
		"$KV.MEMO.>", "$O.ART.>", "petri.>", "run.>", "dead.>",
	}, nil},
	{"reporters", Reporter, []string{
		api + "INFO", api + "STREAM.>", api + "CONSUMER.INFO.>", api + "CONSUMER.MSG.NEXT.>", api + "DIRECT.GET.>", "$JS.ACK.>",
		"$O.REP.>", "petri.*.*.report.*",
	}, nil},
	{"users", User, []string{api + "INFO", api + "DIRECT.GET.KV_ROOM.>", "ask.>"}, []string{"live.petri.>"}},
}

// keyOf names the key that signs the users of a role.
func keyOf(r Role) string {
	for _, a := range roleAccounts {
		if a.role == r {
			return a.key
		}
	}
	return petriKey
}

// exports are what the account that has the streams offers to the others. To
// most requests there is one answer, with which the server forgets the request.
func exports() jwt.Exports {
	var all jwt.Exports
	for _, s := range []string{
		api + "INFO", api + "STREAM.>", api + "CONSUMER.INFO.>", "$JS.ACK.>",
		"$KV.>", "$O.>", "petri.>", "in.>", "reg.*", "unreg.*", "dead.>", "run.>", "ask.>",
	} {
		all.Add(&jwt.Export{Name: s, Subject: jwt.Subject(s), Type: jwt.Service})
	}
	// These have several. Whoever waits for them gives up sooner.
	all.Add(&jwt.Export{Name: "tasks", Subject: api + "CONSUMER.MSG.NEXT.>", Type: jwt.Service, ResponseType: jwt.ResponseTypeStream, ResponseThreshold: 2 * time.Minute},
		&jwt.Export{Name: "pages", Subject: api + "DIRECT.GET.>", Type: jwt.Service, ResponseType: jwt.ResponseTypeStream, ResponseThreshold: 15 * time.Second},
		&jwt.Export{Name: "live", Subject: "live.petri.>", Type: jwt.Stream})
	return all
}

func (a roleAccount) imports(from string) jwt.Imports {
	var all jwt.Imports
	for _, s := range a.services {
		all.Add(&jwt.Import{Name: s, Subject: jwt.Subject(s), Account: from, Type: jwt.Service})
	}
	for _, s := range a.streams {
		all.Add(&jwt.Import{Name: s, Subject: jwt.Subject(s), Account: from, Type: jwt.Stream})
	}
	return all
}

// makeKeys makes the keys of an installation that are not there yet.
func makeKeys(dir string) error {
	names := []string{operatorKey, systemKey, petriKey}
	for _, a := range roleAccounts {
		names = append(names, a.key)
	}
	for _, name := range names {
		path, create := keyFile(dir, name), nkeys.CreateAccount
		if name == operatorKey {
			create = nkeys.CreateOperator
		}
		if exists(path) {
			continue
		}
		key, err := create()
		if err != nil {
			return err
		}
		seed, err := key.Seed()
		if err != nil {
			return err
		}
		if err := replace(path, append(seed, '\n')); err != nil {
			return err
		}
	}
	return nil
}

func keyFile(dir, name string) string { return filepath.Join(dir, "keys", name+".nk") }

func loadKey(dir, name string) (nkeys.KeyPair, error) {
	seed, err := os.ReadFile(keyFile(dir, name))
	if err != nil {
		return nil, fmt.Errorf("read a key of the installation: %w (%s must be a directory of petri bus init, or one of Petri's data; petri bus renew mends an older one)", err, dir)
	}
	key, err := nkeys.FromSeed([]byte(strings.TrimSpace(string(seed))))
	if err != nil {
		return nil, fmt.Errorf("read the key %s of the installation: %w", name, err)
	}
	return key, nil
}

// Lines of a server's configuration that hold tokens.
var (
	operatorLine = regexp.MustCompile(`(?m)^operator: (\S+)$`)
	accountLine  = regexp.MustCompile(`(?m)^  (A[A-Z2-7]{55}): (\S+)$`)
)

// sign makes the part of the servers' configuration that names the operator and
// the accounts, out of the keys. Of a configuration of before it keeps what was
// revoked, and the tokens that would say the same.
func sign(dir string, before []byte) (string, error) {
	old := map[string]string{}
	for _, m := range accountLine.FindAllSubmatch(before, -1) {
		old[string(m[1])] = string(m[2])
	}
	operator, err := loadKey(dir, operatorKey)
	if err != nil {
		return "", err
	}
	var system, petri string
	var accounts strings.Builder
	for i := range 2 + len(roleAccounts) {
		name := systemKey
		if i == 1 {
			name = petriKey
		} else if i > 1 {
			name = roleAccounts[i-2].key
		}
		key, err := loadKey(dir, name)
		if err != nil {
			return "", err
		}
		id, err := key.PublicKey()
		if err != nil {
			return "", err
		}
		c := jwt.NewAccountClaims(id)
		c.Name = strings.ToUpper(name)
		switch name {
		case systemKey:
			system = id
		case petriKey:
			petri, c.Exports = id, exports()
			c.Limits.JetStreamLimits = jwt.JetStreamLimits{
				MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit, MaxAckPending: jwt.NoLimit,
			}
		default:
			c.Imports = roleAccounts[i-2].imports(petri)
		}
		if old[id] != "" {
			was, err := jwt.DecodeAccountClaims(old[id])
			if err != nil {
				return "", fmt.Errorf("read the account %s: %w", c.Name, err)
			}
			c.Revocations = was.Revocations
		}
		token, err := keep(old[id], c, operator)
		if err != nil {
			return "", fmt.Errorf("sign the account %s: %w", c.Name, err)
		}
		fmt.Fprintf(&accounts, "  %s: %s\n", id, token)
	}
	id, err := operator.PublicKey()
	if err != nil {
		return "", err
	}
	c := jwt.NewOperatorClaims(id)
	c.Name, c.SystemAccount = "petri", system
	was := ""
	if m := operatorLine.FindSubmatch(before); m != nil {
		was = string(m[1])
	}
	token, err := keep(was, c, operator)
	if err != nil {
		return "", fmt.Errorf("sign the operator: %w", err)
	}
	return fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: {\n%s}\n", token, system, &accounts), nil
}

// keep returns the token of before if it says what the claims do, else one that
// does.
func keep(before string, c jwt.Claims, key nkeys.KeyPair) (string, error) {
	token, err := c.Encode(key)
	if err == nil && before != "" && said(before) == said(token) {
		return before, nil
	}
	return token, err
}

// said is what a token says, whenever it was signed. Of what is no token it is
// empty.
func said(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var all map[string]any
	if json.Unmarshal(body, &all) != nil {
		return ""
	}
	delete(all, "iat")
	delete(all, "jti")
	text, _ := json.Marshal(all)
	return string(text)
}

// replace writes a file that only its owner can read, all of it or nothing.
func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".petri-*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
