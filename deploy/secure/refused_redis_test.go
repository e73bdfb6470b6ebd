package secure_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
)

// cannotDo shows that Redis refuses each command by its ACL.
func cannotDo(t *testing.T, c *redis.Client, commands ...[]any) {
	t.Helper()
	for _, command := range commands {
		err := c.Do(within(t), command...).Err()
		if err == nil || !strings.HasPrefix(err.Error(), "NOPERM") {
			t.Errorf("%v: %v, want NOPERM", command, err)
		}
	}
}

func TestRedis_InvalidatorCannotReadOrWriteValues(t *testing.T) {
	c := theSite(t).redisAs(t, "authfence-invalidate")
	key := authlib.RedisKey("authfence", event.KeyRef("x"))
	cannotDo(t, c, []any{"GET", key}, []any{"SET", key, "v"}, []any{"RENAME", key, key + "2"}, []any{"COPY", key, key + "2"}, []any{"SCAN", 0}, []any{"KEYS", "*"})
	if err := c.Unlink(within(t), key).Err(); err != nil {
		t.Errorf("what it is there for: %v", err)
	}
}

func TestRedis_NodeCannotTouchOtherKeysOrTheServer(t *testing.T) {
	c := theSite(t).redisAs(t, "authfence-node")
	cannotDo(t, c,
		[]any{"GET", "sessions:1"}, []any{"SET", "sessions:1", "v"}, []any{"UNLINK", "sessions:1"}, []any{"SET", "authfence:v2:x", "v"},
		[]any{"FLUSHALL"}, []any{"FLUSHDB"}, []any{"KEYS", "*"}, []any{"SCAN", 0}, []any{"CONFIG", "SET", "maxmemory", 1},
		[]any{"EVAL", "return 1", 0}, []any{"ACL", "LIST"}, []any{"REPLICAOF", "127.0.0.1", 1},
		[]any{"PUBLISH", "x", "y"}, []any{"MONITOR"}, []any{"SHUTDOWN"}, []any{"CLIENT", "KILL", "TYPE", "normal"},
	)
}

func TestRedis_NobodyComesInWithoutAPassword(t *testing.T) {
	s := theSite(t)
	for _, who := range []struct{ user, password string }{
		{"", ""}, {"", "guess"}, {"default", ""}, {"authfence-node", "guess"}, {"authfence-node", s.passwords["authfence-invalidate"]},
	} {
		c := redis.NewClient(&redis.Options{
			Addr: s.redis.Addr(), Username: who.user, Password: who.password, MaxRetries: -1,
			TLSConfig:                &tls.Config{RootCAs: s.authority.pool},
			MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		})
		err := c.Get(within(t), authlib.RedisKey("authfence", event.KeyRef("x"))).Err()
		if err == nil || errors.Is(err, redis.Nil) || (!strings.HasPrefix(err.Error(), "NOAUTH") && !strings.HasPrefix(err.Error(), "WRONGPASS")) {
			t.Errorf("%q: %v, want NOAUTH or WRONGPASS", who.user, err)
		}
		_ = c.Close()
	}
}

func TestRedis_NobodyComesInWithoutTLSNorToAnImpostor(t *testing.T) {
	s := theSite(t)
	options := redis.Options{
		Addr: s.redis.Addr(), Username: "authfence-node", Password: s.passwords["authfence-node"], MaxRetries: -1, DialerRetries: 1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	plain := redis.NewClient(&options)
	defer plain.Close()
	if err := plain.Ping(within(t)).Err(); err == nil {
		t.Error("answered in plain text")
	}
	options.TLSConfig = &tls.Config{} // the system's authorities
	foreign := redis.NewClient(&options)
	defer foreign.Close()
	var unknown x509.UnknownAuthorityError
	if err := foreign.Ping(within(t)).Err(); !errors.As(err, &unknown) {
		t.Errorf("a server of an unknown authority: %v", err)
	}
}

// writer has a node's password of Redis, and no key for sealing.
type writer struct {
	*redis.Client
	t *testing.T
}

func (w *writer) key(token string) string { return authlib.RedisKey("authfence", event.KeyRef(token)) }

func (w *writer) read(token string) []byte {
	w.t.Helper()
	var value []byte
	eventually(w.t, "the value is in Redis", func() bool {
		var err error
		value, err = w.Get(within(w.t), w.key(token)).Bytes()
		return err == nil
	})
	return value
}

func (w *writer) write(token string, value []byte) {
	w.t.Helper()
	if err := w.Set(within(w.t), w.key(token), value, time.Hour).Err(); err != nil {
		w.t.Fatal(err)
	}
}

// wantFromPrimary shows that a fresh node answers from Postgres: what lies in Redis was no use.
func (s *site) wantFromPrimary(t *testing.T, n *service, token string, want error) {
	t.Helper()
	res, err := n.AuthenticateWith(within(t), token, authlib.Request{})
	if !errors.Is(err, want) || res.Source != authlib.Primary {
		t.Errorf("got %+v, %v; want %v from the primary", res, err, want)
	}
}

func TestRedis_PlantedValueOpensNothing(t *testing.T) {
	s := theSite(t)
	w := &writer{s.redisAs(t, "authfence-node"), t}
	a := s.service(t, "planted-a", nil)
	real := s.newKey(t)
	s.barrier(t)
	s.workedOff(t)
	a.want(t, real, nil)
	value := w.read(real)

	invented := "afk_invented"
	for name, planted := range map[string][]byte{
		"a value of another key":         value,
		"plain JSON":                     []byte(`{"id":"1","org":"1","exp":9223372036854775807,"rev":9223372036854775807}`),
		"a header and nothing that fits": append(append([]byte{}, value[:28]...), make([]byte, 200)...),
		"nothing":                        {},
	} {
		t.Run(name, func(t *testing.T) {
			w.write(invented, planted)
			n := s.service(t, "planted-b", nil)
			s.wantFromPrimary(t, n, invented, authlib.ErrUnknown)
			if st := n.Stats(); st.L2Unopened+st.L2Foreign != 1 {
				t.Errorf("not noticed: %+v", st)
			}
		})
	}
}

func TestRedis_SwappedValueOpensNothing(t *testing.T) {
	s := theSite(t)
	w := &writer{s.redisAs(t, "authfence-node"), t}
	a := s.service(t, "swapped-a", nil)
	mine, theirs, revoked := s.newKey(t), s.newKey(t), s.newKey(t)
	s.revoke(t, revoked)
	s.barrier(t)
	s.workedOff(t)
	a.want(t, mine, nil)
	a.want(t, theirs, nil)
	mineValue, theirsValue := w.read(mine), w.read(theirs)
	w.write(mine, theirsValue)
	w.write(theirs, mineValue)
	w.write(revoked, mineValue)

	n := s.service(t, "swapped-b", nil)
	for token, want := range map[string]error{mine: nil, theirs: nil, revoked: authlib.ErrRevoked} {
		s.wantFromPrimary(t, n, token, want)
	}
	if st := n.Stats(); st.L2Unopened != 3 {
		t.Errorf("%d of 3 were noticed", st.L2Unopened)
	}
}

func TestRedis_ReplayedOldValueIsRefused(t *testing.T) {
	s := theSite(t)
	w := &writer{s.redisAs(t, "authfence-node"), t}
	a := s.service(t, "replayed-a", nil)
	token := s.newKey(t)
	s.barrier(t)
	s.workedOff(t)
	a.want(t, token, nil)
	old := w.read(token)
	s.revoke(t, token)
	s.barrier(t)
	eventually(t, "the value was unlinked", func() bool {
		return errors.Is(w.Get(context.Background(), w.key(token)).Err(), redis.Nil)
	})
	w.write(token, old)
	a.want(t, token, authlib.ErrRevoked)

	// Also a node that was not there at the time: it knows the floor from the stream.
	n := s.service(t, "replayed-b", nil)
	if st := n.Status().Node.Stats; st.Rebuilds != 1 {
		t.Fatalf("the history was not rebuilt: %+v", st)
	}
	s.wantFromPrimary(t, n, token, authlib.ErrRevoked)
	if st := n.Stats(); st.L2Refused != 1 {
		t.Errorf("not refused by its stamp: %+v", st)
	}
}
