package authlib

import (
	"encoding/json"
	"slices"
	"sync/atomic"
	"unicode/utf16"
)

// Wildcard stands, in the permissions of a key, for every resource or for every
// action of a resource.
const Wildcard = "*"

// Permissions says which actions a key may do on which resources. It cannot be
// changed. The zero Permissions grants nothing.
//
// It is read from JSON of the form {"invoices":["read","write"],"plans":["*"]}.
// Whatever has another form grants nothing: a member that is not a list of
// strings is passed over, and so is a whole that is not an object.
type Permissions struct {
	resources map[string][]string     // actions sorted
	json      *atomic.Pointer[string] // as JSON gave it first; nil where nothing is granted
}

// ParsePermissions reads JSON. It has no error: what it does not understand
// grants nothing.
func ParsePermissions(document []byte) Permissions {
	var members map[string]json.RawMessage
	if len(document) == 0 || json.Unmarshal(document, &members) != nil || len(members) == 0 {
		return Permissions{}
	}
	p := Permissions{resources: make(map[string][]string, len(members)), json: new(atomic.Pointer[string])}
	for resource, member := range members {
		var actions []*string // a pointer tells null from ""
		if json.Unmarshal(member, &actions) != nil {
			continue
		}
		known := make([]string, 0, len(actions))
		for _, action := range actions {
			if action != nil && *action != "" {
				known = append(known, *action)
			}
		}
		if len(known) > 0 {
			slices.Sort(known)
			p.resources[resource] = slices.Clip(slices.Compact(known))
		}
	}
	return p
}

// Can reports whether the action on the resource is granted. The empty string
// is neither a resource nor an action.
func (p Permissions) Can(resource, action string) bool {
	if resource == "" || action == "" {
		return false
	}
	return grants(p.resources[resource], action) || grants(p.resources[Wildcard], action)
}

func grants(actions []string, action string) bool {
	for _, a := range actions { // few: shorter than a search
		if a == action || a == Wildcard {
			return true
		}
	}
	return false
}

// Resources lists the resources with a grant, sorted.
func (p Permissions) Resources() []string {
	names := make([]string, 0, len(p.resources))
	for name := range p.resources {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Actions lists the actions granted on a resource as written, without what a
// wildcard resource adds. The slice is the caller's own.
func (p Permissions) Actions(resource string) []string { return slices.Clone(p.resources[resource]) }

// JSON is the grants as a JSON object of printable ASCII, so that it fits into a
// header; resources and actions are sorted. It is made once: a sidecar says it with
// every answer.
func (p Permissions) JSON() string {
	if p.json == nil {
		return "{}"
	}
	if made := p.json.Load(); made != nil {
		return *made
	}
	made := p.render()
	p.json.Store(&made)
	return made
}

func (p Permissions) render() string {
	b := []byte{'{'}
	for i, resource := range p.Resources() {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendASCII(b, resource), ':', '[')
		for j, action := range p.resources[resource] {
			if j > 0 {
				b = append(b, ',')
			}
			b = appendASCII(b, action)
		}
		b = append(b, ']')
	}
	return string(append(b, '}'))
}

// appendASCII appends a JSON string.
func appendASCII(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r >= ' ' && r <= '~':
			b = append(b, byte(r))
		default:
			for _, u := range utf16.AppendRune(nil, r) {
				b = append(b, '\\', 'u', hex[u>>12], hex[u>>8&15], hex[u>>4&15], hex[u&15])
			}
		}
	}
	return append(b, '"')
}

// bytes is about what p takes in memory with its JSON, for the weight of an entry.
func (p Permissions) bytes() int {
	n := 0
	for resource, actions := range p.resources {
		n += 72 + 2*len(resource)
		for _, a := range actions {
			n += 20 + 2*len(a)
		}
	}
	return n
}
