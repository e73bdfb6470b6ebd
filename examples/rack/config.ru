# frozen_string_literal: true

# puma config.ru     AUTHFENCE_SOCKET: where the sidecar listens
require "json"
require_relative "authfence"

use Authfence, socket: ENV.fetch("AUTHFENCE_SOCKET", "/run/authfence/http.sock"), at_least: true

run(lambda do |env|
  principal = env["authfence.principal"]
  action = env["REQUEST_METHOD"] == "GET" ? "read" : "write"
  next Authfence.grant_missing unless principal.can?("orders", action)

  [200, { "content-type" => "application/json" },
   [JSON.generate(key: principal.key_id, organization: principal.organization_id, name: principal.columns["name"])]]
end)
