// Package watch is the mapping: which tables hold the API keys and the organizations of a database, and which of their
// columns count (rules 2 and 4 of the design). The triggers are made from it, and so are the queries of the primary.
//
// A Config is plain and comes from YAML. Validate checks it by itself; Resolve checks it against a live catalog and
// returns a Catalog, which knows the types and so can build the queries. An existing schema is watched as it is:
//
//	api_key:
//	  table: public.api_keys
//	  id: id
//	  key: value
//	  key_format: plaintext
//	  organization: organization_id
//	  expires_at: expires_at
//	  permissions: permissions
//	  load: [name]
//	organization:
//	  table: public.organizations
//	  id: id
//	  relevant: [premium_integrations]
//	  load: [name]
package watch
