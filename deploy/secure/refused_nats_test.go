package secure_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

// streamActs are the ways to change what the stream is or holds, or to read more of JetStream than the events.
var streamActs = []string{
	"$JS.API.STREAM.UPDATE.AUTHFENCE", "$JS.API.STREAM.DELETE.AUTHFENCE", "$JS.API.STREAM.PURGE.AUTHFENCE",
	"$JS.API.STREAM.MSG.DELETE.AUTHFENCE", "$JS.API.STREAM.RESTORE.AUTHFENCE", "$JS.API.STREAM.SNAPSHOT.AUTHFENCE",
	"$JS.API.STREAM.LEADER.STEPDOWN.AUTHFENCE", "$JS.API.STREAM.PEER.REMOVE.AUTHFENCE",
	"$JS.API.STREAM.UPDATE.AUTHFENCE_AUDIT", "$JS.API.STREAM.DELETE.AUTHFENCE_AUDIT", "$JS.API.STREAM.PURGE.AUTHFENCE_AUDIT",
	"$JS.API.STREAM.MSG.DELETE.AUTHFENCE_AUDIT",
	"$JS.API.STREAM.CREATE.OTHER", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.INFO",
	"$JS.API.META.LEADER.STEPDOWN", "$JS.API.STREAM.TEMPLATE.CREATE.x",
}

func TestNATS_NodeCannotPublishEvents(t *testing.T) {
	s := theSite(t)
	seen, err := s.as(t, "observer").SubscribeSync(subjects.Event())
	if err != nil {
		t.Fatal(err)
	}
	token := s.newKey(t)
	s.barrier(t)
	s.as(t, event.RoleNode).cannotPublish(subjects.Event())
	s.revoke(t, token) // its event is the next that anybody hears
	for {
		msg, err := seen.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		ev, err := event.Decode(msg.Data)
		if err != nil {
			t.Fatalf("somebody else published: %s", msg.Data)
		}
		if ev.Changes[0].Op == event.OpUpdate {
			return
		}
	}
}

func TestNATS_NodeCannotAnswerLeases(t *testing.T) {
	c := theSite(t).as(t, event.RoleNode)
	c.cannotSubscribe(subjects.Lease())
	c.cannotPublish(subjects.Inbox(event.RoleNode)+".another.nonce", "_INBOX.another.nonce")
}

func TestNATS_NodeCannotAskForOrAnswerBarriers(t *testing.T) {
	c := theSite(t).as(t, event.RoleNode)
	c.cannotSubscribe(subjects.Barrier(), subjects.Inbox(event.RoleOperator)+".>")
	c.cannotPublish(subjects.Barrier(), subjects.Inbox(event.RoleOperator)+".receipt", subjects.Status(), subjects.Entry())
}

// Reports can be asked for by the leader only, and go to nobody who did not ask.
func TestNATS_NodeReportsOnlyWhereItWasAsked(t *testing.T) {
	c := theSite(t).as(t, event.RoleNode)
	c.cannotPublish(subjects.Report(), subjects.Inbox(event.RoleListener)+".guess")
	c.cannotSubscribe(subjects.Inbox(event.RoleListener) + ".>")
}

func TestNATS_NodeCannotTouchTheStream(t *testing.T) {
	c := theSite(t).as(t, event.RoleNode)
	c.cannotPublish(streamActs...)
	c.cannotPublish(
		"$JS.API.STREAM.CREATE.AUTHFENCE", // nor make it first, with limits of its own
		"$JS.API.CONSUMER.CREATE.AUTHFENCE.x", "$JS.API.CONSUMER.CREATE.AUTHFENCE", "$JS.API.CONSUMER.DURABLE.CREATE.AUTHFENCE.x",
		"$JS.API.CONSUMER.CREATE.OTHER.x.authfence.event", "$JS.API.CONSUMER.MSG.NEXT.OTHER.x",
		"$JS.ACK.OTHER.x.1.1.1.1.0",
		"$JS.API.STREAM.CREATE.AUTHFENCE_AUDIT", "$JS.API.CONSUMER.CREATE.AUTHFENCE_AUDIT.x.authfence.event", "$JS.API.DIRECT.GET.AUTHFENCE_AUDIT",
	)
}

func TestNATS_NodeHearsNothingButEvents(t *testing.T) {
	theSite(t).as(t, event.RoleNode).cannotSubscribe(">", "authfence.>", "$JS.>", "$SYS.>", "_INBOX.>", "other")
}

func TestNATS_ListenerCannotTouchTheStream(t *testing.T) {
	c := theSite(t).as(t, event.RoleListener)
	c.cannotPublish(streamActs...)
	c.cannotPublish("$JS.API.CONSUMER.CREATE.AUTHFENCE.x.authfence.event", "$JS.API.CONSUMER.DELETE.AUTHFENCE.authfence-unlink", subjects.Lease(), subjects.Barrier())
	c.cannotSubscribe(subjects.Inbox(event.RoleNode)+".>", ">")
}

// A node that names a subject of consequence as the reply's has the listener publish nothing there.
func TestNATS_NodeCannotHaveTheListenerPublishForIt(t *testing.T) {
	s := theSite(t)
	seen, err := s.as(t, "admin").SubscribeSync(subjects.Event())
	if err != nil {
		t.Fatal(err)
	}
	c := s.as(t, event.RoleNode)
	ask, err := event.EncodeMessage(event.LeaseAsk{Node: "reflector", Nonce: "n", Staleness: event.Millis(time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	for _, reply := range []string{subjects.Event(), subjects.Report(), "$JS.API.STREAM.PURGE.AUTHFENCE"} {
		if err := c.PublishMsg(&nats.Msg{Subject: subjects.Lease(), Reply: reply, Data: ask}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	s.newKey(t)
	msg, err := seen.NextMsg(patience)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := event.Decode(msg.Data); err != nil {
		t.Errorf("on %s came %s", subjects.Event(), msg.Data)
	}
	for _, l := range s.listeners {
		if strings.Contains(strings.ToLower(l.log.String()), "permission") {
			t.Errorf("%s tried to publish what it may not", l.name)
		}
	}
}

// The server itself sends the answer of JetStream's API wherever the asker says, and asks for no permission: so a node can
// have it repeat on the subject of events what is in the stream, or say what no node can read. Neither changes anything.
func TestNATS_WhatTheServerReflectsChangesNothing(t *testing.T) {
	s := theSite(t)
	n := s.service(t, "reflected-upon", nil)
	kept, revoked := s.newKey(t), s.newKey(t)
	s.barrier(t)
	n.want(t, kept, nil)
	n.want(t, revoked, nil)
	before := n.Status().Node.Stats
	c := s.as(t, event.RoleNode)
	reflect := func(subject, body string) {
		t.Helper()
		if err := c.PublishMsg(&nats.Msg{Subject: subject, Reply: subjects.Event(), Data: []byte(body)}); err != nil {
			t.Fatal(err)
		}
	}
	// First: what is reflected goes into the stream, too, and is what is last there then.
	reflect("$JS.API.DIRECT.GET.AUTHFENCE", `{"last_by_subj":"authfence.event"}`)
	eventually(t, "the node met what it knew", func() bool { return n.Status().Node.Stats.Old > before.Old })
	for subject, body := range map[string]string{
		"$JS.API.STREAM.INFO.AUTHFENCE":                                      "",
		"$JS.API.STREAM.MSG.GET.AUTHFENCE":                                   `{"last_by_subj":"authfence.event"}`,
		"$JS.API.CONSUMER.CREATE.AUTHFENCE.reflector.authfence.event":        `{"v":1,"epoch":"b1946ac92492d234","pos":"999-1","prev":"0-0","changes":[]}`,
		"$JS.API.CONSUMER.INFO.AUTHFENCE.authfence-unlink":                   "",
		"$JS.API.CONSUMER.DELETE.AUTHFENCE.no-such-consumer-as-far-as-known": "",
	} {
		reflect(subject, body)
	}
	eventually(t, "the node met what it cannot read", func() bool { return n.Status().Node.Stats.Poison > before.Poison })
	c.wantNoRefusal()
	s.revoke(t, revoked)
	s.barrier(t)
	n.want(t, kept, nil)
	n.want(t, revoked, authlib.ErrRevoked)
	if after := n.Status().Node.Stats; after.Resets() != before.Resets() {
		t.Errorf("it began anew: %+v, then %+v", before, after)
	}
}

func TestNATS_OperatorAsksForBarriersAndNothingElse(t *testing.T) {
	c := theSite(t).as(t, event.RoleOperator)
	c.cannotPublish(subjects.Event(), subjects.Lease(), subjects.Report(), subjects.Inbox(event.RoleNode)+".x")
	c.cannotPublish(streamActs...)
	c.cannotSubscribe(subjects.Event(), subjects.Barrier(), subjects.Inbox(event.RoleNode)+".>")
}

func TestNATS_ObserverCannotPublish(t *testing.T) {
	c := theSite(t).as(t, "observer")
	c.cannotPublish(subjects.Event(), subjects.Lease(), subjects.Barrier(), subjects.Report(), subjects.Applied(), "anything")
	c.cannotPublish(streamActs...)
}

func TestNATS_ObserverHearsEventsAndWhatIsToldToIt(t *testing.T) {
	theSite(t).as(t, "observer").cannotSubscribe(
		subjects.Lease(), subjects.Report(), subjects.Barrier(), subjects.Status(), subjects.Inbox(event.RoleNode)+".>", ">")
}

func TestNATS_NobodyComesInWithoutAKnownKey(t *testing.T) {
	s := theSite(t)
	ca := nats.RootCAs(s.authority.file())
	if _, err := nats.Connect(s.natsURL(), ca); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("without a key: %v", err)
	}
	if _, err := nats.Connect(s.natsURL(), ca, nats.UserInfo("authfence", "authfence")); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("with a password: %v", err)
	}
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nats.Connect(s.natsURL(), ca, nats.Nkey(public, pair.Sign)); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("with a key of nobody's: %v", err)
	}
	// Somebody's public key, which is no secret, with a signature of another.
	seed, err := os.ReadFile(s.seeds[event.RoleListener])
	if err != nil {
		t.Fatal(err)
	}
	listener, err := nkeys.FromSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	if public, err = listener.PublicKey(); err != nil {
		t.Fatal(err)
	}
	if _, err := nats.Connect(s.natsURL(), ca, nats.Nkey(public, pair.Sign)); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("with the listener's public key alone: %v", err)
	}
}

func TestNATS_NobodyComesInWithoutTLS(t *testing.T) {
	s := theSite(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.nats.URL(), "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	if info, err := reader.ReadString('\n'); err != nil || !strings.Contains(info, `"tls_required":true`) {
		t.Fatalf("%s, %v", info, err)
	}
	// The server may cut us off while we write: what counts is that no PONG comes.
	_, _ = conn.Write([]byte("CONNECT {\"verbose\":false}\r\nPING\r\n"))
	for {
		line, err := reader.ReadString('\n')
		if strings.HasPrefix(line, "PONG") {
			t.Fatal("answered in plain text")
		}
		if err != nil {
			return
		}
	}
}

// A key that is taken out of site.conf is out with the reload, also for who is connected; one that is added is in.
func TestNATS_KeysRotateByReload(t *testing.T) {
	s := theSite(t)
	site := filepath.Join(s.dir, "site.conf")
	before, err := os.ReadFile(site)
	if err != nil {
		t.Fatal(err)
	}
	reload := func(body []byte) {
		t.Helper()
		if err := os.WriteFile(site, body, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.nats.Server().Reload(); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	join := func() (*nats.Conn, error) {
		return nats.Connect(s.natsURL(), nats.RootCAs(s.authority.file()), nats.Nkey(public, pair.Sign), nats.NoReconnect())
	}
	other := s.as(t, "observer") // of a key that stays
	reload(bytes.Replace(before, []byte("CLIENTS: ["), []byte("CLIENTS: [\n  { nkey: "+public+", permissions: $MAY_OBSERVER }"), 1))
	nc, err := join()
	if err != nil {
		t.Fatalf("the new key: %v", err)
	}
	defer nc.Close()
	reload(before)
	eventually(t, "the connection is closed", nc.IsClosed)
	if _, err := join(); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("the old key: %v", err)
	}
	if other.Stats().Reconnects != 0 || !other.IsConnected() {
		t.Error("a client of another key was cut")
	}
}

// A server that cannot prove its name gets neither asks nor a place to send events from.
func TestNATS_ImpostorsAreRefusedByTheClients(t *testing.T) {
	s := theSite(t)
	plain := testenv.NATS(t, testenv.NATSOptions{NoJetStream: true})
	other, err := newAuthority(t.TempDir(), "somebody else's")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := other.issue("nats")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	foreign := testenv.NATS(t, testenv.NATSOptions{NoJetStream: true, Configure: withCertificate(pair)})
	for _, impostor := range []struct{ url, want string }{
		{plain.URL(), "secure connection"},
		{"tls" + strings.TrimPrefix(plain.URL(), "nats"), "secure connection"},
		{foreign.URL(), "certificate"},
	} {
		// Without a key of its own, so that TLS alone is what refuses.
		env := []string{"AUTHFENCE_NATS_URL=" + impostor.url, "AUTHFENCE_NATS_CA=" + s.authority.file()}
		cmd := s.command(within(t), env, "barrier", "--timeout=1s")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		err := cmd.Run()
		if cmd.ProcessState.ExitCode() != 3 || !strings.Contains(stderr.String(), impostor.want) {
			t.Errorf("%s: %v, want exit 3 and %q\n%s", impostor.url, err, impostor.want, stderr.String())
		}
	}
	// Without an authority of the site's own, the system's do not know this server.
	var unknown x509.UnknownAuthorityError
	nkey, err := nats.NkeyOptionFromSeed(s.seeds[event.RoleOperator])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nats.Connect(s.natsURL(), nkey); !errors.As(err, &unknown) {
		t.Errorf("without the authority: %v", err)
	}
}

// The files of deploy/ and the code name the same subjects.
func TestNATS_PermissionsNameTheSubjectsOfTheCode(t *testing.T) {
	body, err := os.ReadFile(filepath.Join(root, "deploy/nats/permissions.conf"))
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{
		subjects.Event(), subjects.Lease(), subjects.Report(), subjects.Barrier(),
		subjects.Inbox(event.RoleListener) + ".>", subjects.Inbox(event.RoleNode) + ".>", subjects.Inbox(event.RoleOperator) + ".>",
		"$JS.API.STREAM.INFO." + subjects.Stream(), "$JS.API.STREAM.CREATE." + subjects.Stream() + "_AUDIT",
		subjects.Applied(), subjects.Status(), subjects.Entry(),
	} {
		if !bytes.Contains(body, []byte(`"`+subject+`"`)) {
			t.Errorf("permissions.conf does not name %s", subject)
		}
	}
}
