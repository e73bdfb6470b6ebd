package history

import (
	"strings"
	"testing"
	"time"
)

const ms = time.Millisecond

// life is a key that is revoked at version 1 (sent at 100 ms, returned at 110)
// and good again at version 2 (200 to 210), beside an organization that stays.
func life() (key, organization *Row) {
	key, organization = NewRow("key", false), NewRow("organization", false)
	key.Begin(true, 100*ms)
	key.End(110 * ms)
	key.Begin(false, 200*ms)
	key.End(210 * ms)
	return key, organization
}

func TestCheck_JudgesByWhatMayHaveHeld(t *testing.T) {
	const bound = 50 * ms
	for _, tc := range []struct {
		name       string
		start, end time.Duration
		outcome    Outcome
		version    int32
		receipts   []Receipt
		illegal    string // part of the verdict; empty: legal
	}{
		{name: "before the commit", start: 10 * ms, end: 20 * ms, version: 0},
		{name: "during the commit", start: 105 * ms, end: 106 * ms, version: 0},
		{name: "refused during the commit", start: 101 * ms, end: 102 * ms, outcome: KeyRefused},
		{name: "refused before the commit was sent", start: 90 * ms, end: 99 * ms, outcome: KeyRefused, illegal: "no legal version of the key (0 to 0) refuses"},
		{name: "stale within the bound", start: 160 * ms, end: 170 * ms, version: 0},
		{name: "stale past the bound", start: 161 * ms, end: 170 * ms, version: 0, illegal: "superseded at 110ms"},
		{name: "begun within the bound, answered late", start: 159 * ms, end: 900 * ms, version: 0},
		{name: "stale after a receipt", start: 130 * ms, end: 131 * ms, version: 0, receipts: []Receipt{{Asked: 111 * ms, Got: 120 * ms}}, illegal: "superseded at 110ms"},
		{name: "begun before the receipt came", start: 119 * ms, end: 131 * ms, version: 0, receipts: []Receipt{{Asked: 111 * ms, Got: 120 * ms}}},
		{name: "a receipt asked for before the commit returned", start: 130 * ms, end: 131 * ms, version: 0, receipts: []Receipt{{Asked: 109 * ms, Got: 120 * ms}}},
		{name: "an early receipt that came late", start: 130 * ms, end: 131 * ms, version: 0, receipts: []Receipt{{Asked: 111 * ms, Got: 120 * ms}, {Asked: 50 * ms, Got: 125 * ms}}, illegal: "superseded at 110ms"},
		{name: "the new version", start: 201 * ms, end: 202 * ms, version: 2},
		{name: "a version of the future", start: 150 * ms, end: 199 * ms, version: 2, illegal: "no version 2 yet"},
		{name: "refused within the bound of coming back", start: 250 * ms, end: 251 * ms, outcome: KeyRefused},
		{name: "refused past the bound of coming back", start: 270 * ms, end: 271 * ms, outcome: KeyRefused, illegal: "no legal version of the key (2 to 2) refuses"},
		{name: "accepted from a version that refuses", start: 150 * ms, end: 151 * ms, version: 1, illegal: "version 1 of key refuses"},
		{name: "an organization that never refused", start: 150 * ms, end: 151 * ms, outcome: OrganizationRefused, illegal: "organization (0 to 0) refuses"},
		{name: "unavailable", start: 150 * ms, end: 151 * ms, outcome: Unavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			key, organization := life()
			report := Check(bound, []*Row{key, organization}, tc.receipts, [][]Answer{{{
				Start: tc.start, End: tc.end, Key: key, Organization: organization, KeyVersion: tc.version, Outcome: tc.outcome,
			}}})
			if tc.illegal == "" && report.Violations != 0 {
				t.Errorf("legal, but: %s", report.First)
			}
			if tc.illegal != "" && (report.Violations == 0 || !strings.Contains(report.First[0], tc.illegal)) {
				t.Errorf("illegal (%s), but: %v", tc.illegal, report.First)
			}
			if report.Revocations != 1 || report.Answers != 1 {
				t.Errorf("counted %+v", report)
			}
		})
	}
}

func TestCheck_MeasuresTheWorstStaleness(t *testing.T) {
	key, organization := life()
	report := Check(time.Second, []*Row{key, organization}, nil, [][]Answer{
		{{Start: 130 * ms, End: 131 * ms, Key: key, Organization: organization}},
		{{Start: 153 * ms, End: 154 * ms, Key: key, Organization: organization}, {Start: 1 * ms, End: 2 * ms, Key: key, Organization: organization}},
	})
	if report.Worst != 43*ms || report.Violations != 0 || report.Answers != 3 {
		t.Errorf("got %+v", report)
	}
}

func TestCheck_TakesAnUnfinishedCommitForUndecided(t *testing.T) {
	key, organization := NewRow("key", false), NewRow("organization", false)
	key.Begin(true, 100*ms) // never returned: it may or may not have happened
	answers := [][]Answer{{
		{Start: 900 * ms, End: 901 * ms, Key: key, Organization: organization},
		{Start: 900 * ms, End: 901 * ms, Key: key, Organization: organization, Outcome: KeyRefused},
	}}
	if report := Check(0, []*Row{key, organization}, nil, answers); report.Violations != 0 {
		t.Errorf("got %v", report.First)
	}
}
