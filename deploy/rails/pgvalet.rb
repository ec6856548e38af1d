# frozen_string_literal: true

# pgvalet's glue for ActiveRecord 6.1 to 8.1 (docs/rails.md). Drop it into config/initializers, or require it from a
# plain script; without PGVALET_ADMIN_URL (http:// or https://host:port, or unix:/path) in the environment it does nothing.
# It owns a note on each connection, of who leased it and when, and the reload. It refuses to force a connection away
# from its owner, to touch a transaction or an explicit checkout, to raise in the reloader, to do I/O in a checkout.
require "active_record"
require "json"
require "net/http"
require "openssl"

module Pgvalet
  extend self
  PRIVATE = { # all that is used of Rails beyond its documented interface; what a version lacks is off, and said once
    force: "ConnectionPool#clear_reloadable_connections is gone: a reload waits for held connections as Rails does",
    fence: "TransactionManager#begin_transaction or #open_transactions is gone: nothing is taken back",
    lease: "the pool has neither @leases nor @thread_cached_conns: nothing is taken back",
    session: "the adapter has neither @raw_connection nor @connection: nothing is submitted, nothing is taken back",
    executor: "Reloader#require_unload_lock! or Interlock#raw_state is gone: who blocks the reloader is not named",
  }.freeze
  ADMIN, FILES = ENV["PGVALET_ADMIN_URL"].to_s, %w[TOKEN_FILE CA CERT KEY].to_h { |it| [it, ENV["PGVALET_ADMIN_#{it}"]] }
  CONNECT, ANSWER, LARGEST = 0.25, 0.5, 8 << 20 # s, s, bytes; past them the app goes on as if there were no pgvalet
  PARK_AFTER = ENV.fetch("PGVALET_PARK_AFTER", "5s").then { |text| text.to_f / (text.end_with?("ms") ? 1000 : 1) } # s
  Taken = Class.new(ActiveRecord::ConnectionNotEstablished)         # what the fence raises, with nothing executed
  Lease = Struct.new(:since, :thread, :session, :beginning, :taken) # the note; a new one at each checkout
  Row = Struct.new(:conn, :owner, :lease, :claim)                   # of the app's own table; the claim is what is sent
  POOLS, TAKEN, OFF, FENCE = Concurrent::Map.new, Concurrent::Map.new, {}, Mutex.new # TAKEN: claims of private sessions
  FOREIGN = Regexp.union("<internal:", __FILE__, RbConfig::CONFIG["rubylibprefix"], *Gem.path) # frames not of the app
  WAITING = %r{\A<internal:|/monitor\.rb\z|/(?:async|io-event)[-/]} # frames that say how somebody waits, not for what
  RAILS = Regexp.union(%r{/active_?(?:record|support)[-/]|/pg/connection\.rb\z}, __FILE__) # there: for a lock, an answer

  module Pool
    def clear_reloadable_connections(*) # the wait and the force serve adapters that must reload; PostgreSQL's never does
      super if connections.any?(&:requires_reloading?)
    end

    def checkout(*)
      super.tap { |conn| Pgvalet.leased(conn) }
    end

    def checkin(conn) # what a woken owner kept never comes back into the pool
      conn.pgvalet&.taken ? conn.disconnect! : super
    end
  end

  # For the owner that wakes as its connection is taken: BEGIN would go there, its models' statements to its next one.
  module Fence
    def begin_transaction(*, **)
      return super if open_transactions > 0 || !(lease = @connection.pgvalet)
      FENCE.synchronize { lease.beginning = !lease.taken || raise(Taken, "pgvalet took it back as its owner slept: begin again") }
      super
    ensure
      lease.beginning = false if lease
    end
  end

  module Unload
    def require_unload_lock! # whoever holds this up, holds it up ahead of every hook: to be named, not cured
      watch = Thread.new { Pgvalet.name_blockers }
      super
    ensure
      watch&.kill
    end
  end

  def install
    has = ->(owner, *names) { names.all? { |name| owner.method_defined?(name) } }
    adapters, reloader = ActiveRecord::ConnectionAdapters, ActiveSupport::Reloader
    pool, manager, interlock = adapters::ConnectionPool, adapters::TransactionManager, ActiveSupport::Dependencies.interlock
    adapters::AbstractAdapter.attr_accessor :pgvalet
    off(:force) unless has[pool, :clear_reloadable_connections]
    pool.prepend(Pool)
    has[manager, :begin_transaction, :open_transactions] ? manager.prepend(Fence) : off(:fence)
    has[reloader, :require_unload_lock!] && has[interlock.class, :raw_state] ? reloader.prepend(Unload) : off(:executor)
    reloader.before_class_unload(prepend: true) { Pgvalet.reload! }
  end

  # Lets go of what pgvalet certifies and the recheck confirms. Returns how many; nil where pgvalet was of no use.
  def reload!
    began, rows = Time.now, table
    return 0 if rows.empty?
    answer = call("POST", "/v1/reloads", sessions: rows.map(&:claim) + TAKEN.values) # the private ones give backends back too
    leases = answer.fetch("leases").to_h { |lease| [lease.fetch("session"), lease] }
    TAKEN.each_key { |id| TAKEN.delete(id) if %w[gone unknown].include?(leases.dig(id, "outcome")) }
    texts = rows.select(&:owner).map do |row|
      outcome, reason, last = leases.fetch(row.claim[:id], {}).values_at("outcome", "reason", "last_statement")
      kept = outcome == "returned" ? take(row) : [outcome || "not judged", *reason].join(": ")
      TAKEN[row.claim[:id]] = row.claim unless kept
      "#{kept ? "left (#{kept})" : "took back"} #{row.claim[:owner]} (#{row.claim[:class]}), held since " \
        "#{row.lease.since.strftime("%T")}, after #{last || "no statement"}, at #{row.claim[:where]}"
    end
    log(:warn, "reload #{answer["id"]}, #{((Time.now - began) * 1000).round} ms: #{texts.join("; ")}") if texts.any?
    rows.count { |row| row.lease.taken }
  rescue StandardError => e
    log(:warn, "pgvalet was of no use, the reload goes on without it: #{e.class}: #{e.message[0, 200].inspect}")
  end

  def leased(conn) # in the thread that gets it
    conn.pgvalet = Lease.new(Time.now, Thread.current, wire(conn)&.last)
    POOLS[conn.pool] = true
    @claims = (Thread.new { loop { sleep(PARK_AFTER / 2) && send_claims } } rescue nil) unless @claims&.alive? # a fork ends it
  end

  def name_blockers
    sleep 2
    ActiveSupport::Dependencies.interlock.raw_state do |all|
      stuck = all.reject { |_, state| state[:purpose] == :unload || (!state[:waiting] && state[:sharing].to_i.zero?) }.keys
      log(:warn, "the reloader waits for who is inside Rails' executor, and must wait outside of it: " \
                 "#{stuck.map { |thread| "#{title(thread)} at #{where(thread)}" }.join("; ")}")
    end
  end

  private

  # By removal, never by steal and check-in, which hands a connection on while its owner may still hold the object. The
  # owner keeps a private, working session, and leases another with its next `connection`. Returns why not, or nil.
  def take(row)
    kept = row.conn.pool.synchronize { FENCE.synchronize { refusal(row) || (row.lease.taken = true) && nil } }
    kept || row.conn.pool.remove(row.conn) && nil # outside of the locks, since it connects for who waits for a connection
  end

  def refusal(row) # what pgvalet can't know, the owner's sleep last
    conn, owner, lease = row.conn, row.owner, row.lease
    return "a part of the glue is off" if OFF.key?(:fence)
    return "changed hands" unless conn.owner.equal?(owner) && conn.pgvalet.equal?(lease) && conn.pool.connections.include?(conn)
    return "not leased implicitly" unless implicit?(conn.pool, owner, conn)
    return "in a transaction" if lease.beginning || conn.open_transactions > 0
    return "busy" unless wire(conn) == [PG::PQTRANS_IDLE, row.claim[:id]]
    "awake" unless asleep?(owner, lease.thread)
  end

  def implicit?(pool, owner, conn)
    leases, cached = %i[@leases @thread_cached_conns].map { |name| pool.instance_variable_get(name) }
    return leases[owner].connection.equal?(conn) && leases[owner].sticky if leases # 7.2 on; not sticky: a with_connection block
    cached ? cached[owner].equal?(conn) : off(:lease)
  end

  def asleep?(owner, thread) # a fiber sleeps while its thread does, or runs the reloader
    still = owner.is_a?(Thread) ? owner.status == "sleep" : owner.alive? && (thread == Thread.current || thread&.status == "sleep")
    still && !RAILS.match?(owner.backtrace_locations.to_a.find { |frame| !WAITING.match?(frame.path) }&.path.to_s)
  end

  def table
    conns = POOLS.keys.flat_map { |pool| Array(pool.connections).tap { |all| POOLS.delete(pool) if all.empty? } }
    conns.filter_map do |conn|
      id, owner, lease = wire(conn)&.last, conn.owner, conn.pgvalet ||= Lease.new(Time.now)
      next if id.nil? || owner == Thread.current || owner == Fiber.current
      held = { class: owner.class.name, held_for: "#{(Time.now - lease.since).to_i}s", where: where(owner) } if owner
      Row.new(conn, owner, lease, { id: id, owner: owner ? title(owner) : "", state: owner ? "held" : "resting", **held.to_h })
    end
  end

  def send_claims # tells who it is while something stays held, and once more when nothing does
    rows, was = table, @long
    @long = rows.any? { |row| row.owner && Time.now - row.lease.since >= PARK_AFTER }
    call("PUT", "/v1/claims", source: "#{Socket.gethostname}:#{Process.pid}", claims: rows.map(&:claim)) if @long || was
  rescue StandardError => e # the next reload says it aloud
    log(:debug, "pgvalet got no claims: #{e.class}: #{e.message[0, 200]}")
  end

  def call(verb, path, body)
    uri, json = URI(ADMIN), JSON.generate(body)
    socket = Timeout.timeout(CONNECT) { uri.scheme == "unix" ? UNIXSocket.new(uri.path) : TCPSocket.new(uri.hostname, uri.port) }
    socket = Timeout.timeout(CONNECT) { encrypted(socket, uri.hostname) } if uri.scheme == "https"
    head = ["#{verb} #{path} HTTP/1.0", "Host: localhost", "Content-Type: application/json", "Content-Length: #{json.bytesize}"]
    token = FILES["TOKEN_FILE"] ? File.read(FILES["TOKEN_FILE"]).strip : ENV["PGVALET_ADMIN_TOKEN"].to_s
    head << "Authorization: Bearer #{token}" unless token.empty?
    answer = Timeout.timeout(ANSWER) { socket.write([*head, "", json].join("\r\n")) && socket.read(LARGEST) }
    raise "it answers #{answer.to_s[0, 60].inspect}" unless answer.to_s.match?(%r{\AHTTP/1\.\d 2\d\d}n)
    JSON.parse(answer.split("\r\n\r\n", 2).last)
  ensure
    socket&.close
  end

  def encrypted(socket, host)
    context = OpenSSL::SSL::SSLContext.new
    context.set_params(FILES["CA"] ? { ca_file: FILES["CA"] } : {}) # verifies, against the system's roots by default
    context.cert, context.key = OpenSSL::X509::Certificate.new(File.read(FILES["CERT"])), OpenSSL::PKey.read(File.read(FILES["KEY"])) if FILES["CERT"]
    OpenSSL::SSL::SSLSocket.new(socket, context).tap do |encrypted|
      encrypted.sync_close, encrypted.hostname = true, host
      encrypted.connect.post_connection_check(host)
    end
  end

  # Its transaction's status and pgvalet's id of its session, both from libpq's memory. (raw_connection connects, from 7.1 on.)
  def wire(conn)
    variable = %i[@raw_connection @connection].find { |name| conn.instance_variable_defined?(name) } || off(:session)
    status = (driver = conn.instance_variable_get(variable)).transaction_status # active: somebody may be inside libpq
    id = status == PG::PQTRANS_ACTIVE ? conn.pgvalet&.session : driver.parameter_status("pgvalet.session")
    [status, id && Integer(id)]
  rescue NameError, TypeError, ArgumentError, PG::Error # not PostgreSQL; not connected yet, or closed
  end

  def where(owner)
    frame = owner.backtrace_locations.to_a.then { |all| all.find { |at| !FOREIGN.match?(at.path) } || all.first }
    "#{frame.path.delete_prefix("#{defined?(Rails.root) && Rails.root || Dir.pwd}/")}:#{frame.lineno}" if frame
  end

  def title(owner)
    owner.is_a?(Thread) && owner.name.presence || owner.inspect[/ (\S+:\d+)/, 1] || "unnamed" # or where it was created
  end

  def off(part)
    OFF[part] = OFF.fetch(part) { log(:warn, PRIVATE.fetch(part)) }
  end

  def log(level, text)
    (ActiveRecord::Base.logger || (@logger ||= Logger.new($stderr))).public_send(level, "[pgvalet] #{text}") && nil
  end
end

ActiveSupport.on_load(:active_record) { Pgvalet.install } unless Pgvalet::ADMIN.empty?
