package authlib

import (
	"encoding/json"
	"sync"
)

// grantsTable has keys that grant the same share what says so: a deployment has
// many keys and few kinds of them, and parsed permissions are half of an entry.
// What is shared is never changed.
type grantsTable struct {
	mu  sync.Mutex
	all map[string]grantsText
}

type grantsText struct {
	document    json.RawMessage
	permissions Permissions
}

// Bounds of a table. One that is full begins anew: entries keep what they have.
const (
	grantsMost    = 1024
	grantsLongest = 4 << 10 // bytes; a longer document is the key's own
)

// of gives a document and what it means.
func (t *grantsTable) of(document string) (json.RawMessage, Permissions) {
	if document == "" {
		return nil, Permissions{}
	}
	if len(document) > grantsLongest {
		own := json.RawMessage(document)
		return own, ParsePermissions(own)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	shared, ok := t.all[document]
	if !ok {
		shared.document = json.RawMessage(document)
		shared.permissions = ParsePermissions(shared.document)
		if t.all == nil || len(t.all) >= grantsMost {
			t.all = make(map[string]grantsText)
		}
		t.all[document] = shared
	}
	return shared.document, shared.permissions
}
