package event

import "time"

// Headers of an event's message: CloudEvents 1.0 attributes in binary mode.
// All values are ASCII.
const (
	HeaderSpecVersion = "ce-specversion"
	HeaderID          = "ce-id"
	HeaderSource      = "ce-source"
	HeaderType        = "ce-type"
	HeaderTime        = "ce-time"
	HeaderContentType = "Content-Type"
)

// Headers gives the CloudEvents attributes of an event published under a
// subject prefix. Any map of string lists takes them, nats.Header among them.
func Headers(e Event, prefix string) map[string][]string {
	return map[string][]string{
		HeaderSpecVersion: {"1.0"},
		HeaderID:          {e.ID()},
		HeaderSource:      {"/authfence/" + prefix},
		HeaderType:        {Type},
		HeaderTime:        {e.At.UTC().Truncate(time.Microsecond).Format(time.RFC3339Nano)},
		HeaderContentType: {"application/json"},
	}
}
