package authlib

import (
	"testing"
	"unsafe"
)

// Who holds the principal of a key goes on holding what it was told, when the key is
// composed with another row of its organization.
func TestCompose_LeavesTheFirstAlone(t *testing.T) {
	e := newKeyEntry(&keyRecord{ID: "k", OrganizationID: "o"}, life{})
	before, after := newOrganizationEntry(&organizationRecord{ID: "o"}, life{}), newOrganizationEntry(&organizationRecord{ID: "o", Unrestricted: true}, life{})
	first := &e.compose(before).principal
	if first != &e.compose(before).principal {
		t.Error("the same organization makes another composition")
	}
	second := &e.compose(after).principal
	if first.organization != before.record || second.organization != after.record || &e.compose(after).principal != second {
		t.Error("a principal that somebody holds was changed")
	}
}

// What a hit reads of an entry must not spread over more lines of memory than it
// has to: see keyEntry.
func TestEntries_KeepWhatAHitReadsInOneLine(t *testing.T) {
	const line = 64
	var k keyEntry
	if n := unsafe.Sizeof(k); n != 2*line {
		t.Errorf("a keyEntry has %d bytes, and so no alignment", n)
	}
	if end := unsafe.Offsetof(k.used) + unsafe.Sizeof(k.used); end > line {
		t.Errorf("what a hit reads of a key ends at byte %d", end)
	}
	if end := unsafe.Offsetof(k.first) + unsafe.Offsetof(k.first.organization) + unsafe.Sizeof(k.first.organization); end > line {
		t.Errorf("what a hit reads of the first composition ends at byte %d", end)
	}
	var o organizationEntry
	if n := unsafe.Sizeof(o); n != 2*line {
		t.Errorf("an organizationEntry has %d bytes, and so no alignment", n)
	}
	if end := unsafe.Offsetof(o.gone) + unsafe.Sizeof(o.gone); end > line {
		t.Errorf("what a hit reads of an organization ends at byte %d", end)
	}
	addresses := make([]*keyEntry, 1000)
	for i := range addresses {
		addresses[i] = new(keyEntry)
		if at := uintptr(unsafe.Pointer(addresses[i])); at%line != 0 {
			t.Fatalf("an entry begins at %#x, within a line", at)
		}
	}
}
