# frozen_string_literal: true

require "json"
require "net/http"
require "socket"

# Authenticates every request at the authfence sidecar, over its unix socket. No
# gem is needed but Rack.
#
#   use Authfence, socket: "/run/authfence/http.sock"                    # config.ru
#   config.middleware.use Authfence, socket: "/run/authfence/http.sock"  # Rails
#
# What is below finds out who asks in env["authfence.principal"]:
#
#   principal.key_id, principal.organization_id, principal.columns["name"]
#   principal.can?("invoices", "write")
#
# Whatever is not a clear yes ends here: 401, 403 and 503 as the sidecar says, and
# 503 when it is gone.
class Authfence
  Principal = Struct.new(:key_id, :organization_id, :permissions, :columns, :organization_columns, keyword_init: true) do
    def can?(resource, action)
      return false if resource.empty? || action.empty?

      granted = [permissions[resource], permissions["*"]].grep(Array).flatten
      granted.include?(action) || granted.include?("*")
    end
  end

  # HTTP over a unix socket, kept alive.
  class Connection < Net::HTTP
    def self.to(path, timeout)
      new("authfence", 80, nil).tap do |http| # nil: no proxy of the environment
        http.instance_variable_set(:@path, path)
        http.open_timeout = http.read_timeout = http.write_timeout = timeout
        http.keep_alive_timeout = 60 # the sidecar keeps an idle one for 2 minutes
        http.max_retries = 0 # that an idle one was closed is noticed before it is used
        http.start
      end
    end

    private

    def connect
      socket = Timeout.timeout(open_timeout, Net::OpenTimeout) { UNIXSocket.open(@path) }
      @socket = Net::BufferedIO.new(socket, read_timeout: read_timeout, write_timeout: write_timeout)
    end
  end

  # timeout: seconds for each of connecting, sending, the answer. The sidecar itself
  # gives up after 2 s, with a better answer than ours.
  # at_least: let a request demand, by X-Authfence-At-Least, to be answered no older
  # than a barrier's receipt. It may cost a read of Postgres.
  def initialize(app, socket:, timeout: 3, at_least: false)
    @app, @socket, @timeout, @at_least = app, socket, timeout, at_least
    @idle = Queue.new # as many as there were requests at once: the server's threads
  end

  def call(env)
    answer = ask(env)
    return refuse(answer) unless answer.is_a?(Principal)

    env["authfence.principal"] = answer
    @app.call(env)
  end

  # Answers a request that lacks a grant; for what is below.
  def self.grant_missing
    [403, { "content-type" => "application/json", "cache-control" => "no-store",
            "www-authenticate" => 'Bearer error="insufficient_scope"' }, [%({"error":"insufficient_scope"}\n)]]
  end

  private

  # A Principal, or the sidecar's refusal, or nil if nothing can be said.
  def ask(env)
    request = Net::HTTP::Get.new("/v1/authenticate?body=json")
    request["authorization"] = env["HTTP_AUTHORIZATION"] if env["HTTP_AUTHORIZATION"]
    request["x-authfence-at-least"] = env["HTTP_X_AUTHFENCE_AT_LEAST"] if @at_least && env["HTTP_X_AUTHFENCE_AT_LEAST"]
    response = connected { |http| http.request(request) }
    return response unless response.code == "200"

    body = JSON.parse(response.body, freeze: true)
    Principal.new(key_id: body.fetch("key_id"), organization_id: body.fetch("organization_id"),
                  permissions: body.fetch("permissions").to_h, columns: body["columns"].to_h,
                  organization_columns: body["organization_columns"].to_h).freeze
  rescue StandardError
    nil # nothing of the application ran here. Not logged: the text may hold the token
  end

  def connected
    http = begin
      @idle.pop(true)
    rescue ThreadError
      Connection.to(@socket, @timeout)
    end
    yield(http).tap { @idle.push(http) } # one that failed is not used again
  end

  def refuse(response)
    headers = { "content-type" => "application/json", "cache-control" => "no-store" }
    unless response && %w[400 401 403 503].include?(response.code)
      return [503, headers.merge("retry-after" => "1"), [%({"error":"temporarily_unavailable"}\n)]]
    end

    %w[www-authenticate retry-after].each { |name| headers[name] = response[name] if response[name] }
    [response.code.to_i, headers, [response.body.to_s]]
  end
end
