package authlib

import (
	"testing"
	"time"

	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

// A node that reads a column which the triggers do not watch, as in the middle of
// a deployment, holds a lease that says nothing of that column: no event of it
// will ever be missing.
func TestWatched_ColumnsThatNoTriggerWatchesLiveOnTheirOwnRead(t *testing.T) {
	s := newScene(t)
	cfg := s.l2config(t)
	cfg.MaxStaleness = time.Minute
	cfg.Watch = watch.DefaultConfig()
	cfg.Watch.Organization.Load = []string{"name", "created_at"}
	a := ready(t, start(t, cfg))
	if st := a.Status(); st.Watched {
		t.Errorf("before the first load it is not known: %+v", st)
	}
	token := newToken()
	s.newKey(token)
	for _, source := range []Source{Primary, L1} {
		if res, err := a.AuthenticateWith(within(t), token, Request{}); err != nil || res.Source != source || !res.Position.IsZero() {
			t.Fatalf("got %+v, %v; want no position from %s", res, err, source)
		}
	}
	a.l1.organizations.Invalidate(s.org) // the organization is read, the key is not
	if res, err := a.AuthenticateWith(within(t), token, Request{}); err != nil || res.Source != Primary || !res.Position.IsZero() {
		t.Fatalf("got %+v, %v", res, err)
	}
	if st := a.Status(); st.Watched || st.Stats.Unwatched != 2 || !st.Mapped {
		t.Fatalf("status is %+v", st)
	}
	s.exec(`UPDATE organizations SET created_at = '2001-02-03 04:05:06+00'`)
	age(a, token, s.org) // its own read is long ago, the lease is in force
	if at, _ := mustAuth(t, a, token).OrganizationColumn("created_at"); at[:4] != "2001" {
		t.Errorf("a lease vouched for a column that nobody watches: created_at is %s", at)
	}
	if len(a.l2.writes) != 0 || a.Stats().L2Writes != 0 {
		t.Error("it went to Redis")
	}

	// The migration comes, after the node for once: from the next read on all is
	// as it should be.
	if err := migrations.Up(within(t), s.url, migrations.Options{Watch: cfg.Watch}); err != nil {
		t.Fatal(err)
	}
	s.apply(widely("organization"), a) // what the migration logs
	for _, source := range []Source{Primary, L1} {
		if res, err := a.AuthenticateWith(within(t), token, Request{}); err != nil || res.Source != source || !res.Position.IsZero() {
			t.Fatalf("the organization is watched, the key was not: got %+v, %v; want no position from %s", res, err, source)
		}
	}
	s.apply(widely("api_key"), a)
	res, err := a.AuthenticateWith(within(t), token, Request{})
	if err != nil || res.Position.IsZero() {
		t.Fatalf("got %+v, %v", res, err)
	}
	if st := a.Status(); !st.Watched || st.Stats.Unwatched != 3 {
		t.Errorf("status is %+v", st)
	}
	age(a, token, s.org)
	if res, err = a.AuthenticateWith(within(t), token, Request{}); err != nil || res.Source != L1 {
		t.Errorf("a leased entry is not served: %+v, %v", res, err)
	}

	// And another migration has them watch less.
	if err := migrations.Up(within(t), s.url, migrations.Options{Watch: watch.DefaultConfig()}); err != nil {
		t.Fatal(err)
	}
	s.apply(widely("organization"), a)
	mustAuth(t, a, token)
	if st := a.Status(); st.Watched || st.Stats.Unwatched != 4 {
		t.Errorf("status is %+v", st)
	}
}

// A node with a mapping that the triggers cover, more or less of it, is a node
// like any other.
func TestWatched_TriggersMayWatchMore(t *testing.T) {
	s := newScene(t)
	cfg := s.config(t)
	cfg.Watch = watch.DefaultConfig()
	cfg.Watch.APIKey.Load, cfg.Watch.Organization.Load = nil, nil
	a := ready(t, start(t, cfg))
	if st := a.Status(); !st.Watched {
		t.Errorf("before the first load it is not known: %+v", st)
	}
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	if st := a.Status(); !st.Watched || st.Stats.Unwatched != 0 {
		t.Errorf("status is %+v", st)
	}
}
