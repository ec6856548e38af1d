# frozen_string_literal: true

# pgvalet's glue for ActiveRecord 6.1 to 8.1 (docs/rails.md). Drop it into config/initializers, or require it from a
# plain script; without PGVALET_ADMIN_URL (http:// or https://host:port, or unix:/path) in the environment it does nothing.
# A database behind another pgvalet than that names its own in database.yml: `pgvalet_admin: http://host:port`.
# It owns a note on each connection, of who leased it and when, and the reload. It refuses to force a connection away
# from its owner, to touch a transaction or an explicit checkout, to raise in the reloader, to do I/O in a checkout.
require "active_record"
require "json"
require "net/http"
require "openssl"

module Pgvalet
  extend self
  # All that is used of Rails beyond its documented interface. What a version lacks is off, and that is said once: methods
  # are looked for at boot, variables at a pool's first connection.
  PRIVATE = {
    all: "ActiveRecord's pool or ActiveSupport's reloader isn't what it was: the glue does nothing",
    force: "ConnectionPool#clear_reloadable_connections is gone: a reload waits for held connections as Rails does",
    fence: "TransactionManager#begin_transaction, #open_transactions or @connection is gone: nothing is taken back",
    lease: "the pool has neither @leases nor @thread_cached_conns: nothing is taken back",
    session: "the adapter has neither @raw_connection nor @connection: nothing is submitted, nothing is taken back",
    executor: "Reloader#require_unload_lock! or Interlock#raw_state is gone: who blocks the reloader is not named",
  }.freeze
  ADMIN, FILES = ENV["PGVALET_ADMIN_URL"].to_s, %w[TOKEN_FILE CA CERT KEY].to_h { |it| [it, ENV["PGVALET_ADMIN_#{it}"]] }
  CONNECT, ANSWER, LARGEST = 0.25, 0.5, 8 << 20 # s, s, bytes; past them the app goes on as if there were no pgvalet
  PARK_AFTER = ENV.fetch("PGVALET_PARK_AFTER", "5s").then { |text| text.to_f / (text.end_with?("ms") ? 1000 : 1) } # s
  Taken = Class.new(ActiveRecord::ConnectionNotEstablished)         # what the fence raises, with nothing executed
  Lease = Struct.new(:since, :thread, :session, :beginning, :taken) # the note; a new one at each checkout
  Row = Struct.new(:admin, :conn, :owner, :lease, :claim)           # of the app's own table; the claim is what is sent
  POOLS, TAKEN = Concurrent::Map.new, Concurrent::Map.new # each pool's pgvalet; claims of private sessions by it and id
  OFF, FENCE = {}, Mutex.new
  LEASES, DRIVER = %i[@leases @thread_cached_conns], %i[@raw_connection @connection] # as of 7.2 and 7.1, and before
  FOREIGN = Regexp.union("<internal:", __FILE__, RbConfig::CONFIG["rubylibprefix"], *Gem.path) # frames not of the app
  WAITING = %r{\A<internal:|/monitor\.rb\z|/gems/(?:async|io-event)-\d|/vendor_ruby/(?:async|io/event)[/.]} # how, not for what
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
      return super if open_transactions > 0 || !(lease = @connection&.pgvalet)
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
    pool, manager, interlock = adapters::ConnectionPool, adapters::TransactionManager, ActiveSupport::Dependencies.try(:interlock)
    return off(:all) unless has[pool, :checkout, :checkin, :connections, :remove, :synchronize, :db_config] &&
      has[adapters::AbstractAdapter, :owner, :pool, :open_transactions, :transaction_manager] && reloader.respond_to?(:before_class_unload)
    adapters::AbstractAdapter.attr_accessor :pgvalet
    off(:force) unless has[pool, :clear_reloadable_connections]
    pool.prepend(Pool)
    has[manager, :begin_transaction, :open_transactions] ? manager.prepend(Fence) : off(:fence)
    has[reloader, :require_unload_lock!] && has[interlock.class, :raw_state] ? reloader.prepend(Unload) : off(:executor)
    reloader.before_class_unload(prepend: true) { Pgvalet.reload! }
  rescue NameError
    off(:all)
  end

  # Lets go of what pgvalet certifies and the recheck confirms. Returns how many; nil where pgvalet was of no use.
  def reload!
    took = table.group_by(&:admin).map { |admin, rows| reload_at(admin, rows) }
    took.compact.sum if took.empty? || took.any?
  rescue StandardError => e
    log(:warn, "the reload goes on without pgvalet: #{e.class}: #{e.message[0, 200].inspect}")
  end

  def leaks # as all of the app's pgvalets report them
    here = ActiveRecord::ConnectionHandling::DEFAULT_ENV.call
    configs = ActiveRecord::Base.configurations.configurations.select { |config| config.env_name == here }
    [ADMIN, *configs.filter_map { |config| admin(config) }].uniq.flat_map { |admin| call(admin, "GET", "/v1/leaks").fetch("leaks") }
  end

  def leased(conn) # in the thread that gets it
    begin_process unless @claims&.alive? # it doesn't survive a fork
    POOLS[conn.pool] ||= examine(conn)
    conn.pgvalet = Lease.new(Time.now, Thread.current, conn.pgvalet&.session || wire(conn)&.last)
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

  def begin_process # with notes of its own: what a parent leased and took is the parent's
    FENCE.synchronize do
      [POOLS, TAKEN].each(&:clear) if @pid != Process.pid
      @pid = Process.pid
      @claims = Thread.new { loop { sleep(PARK_AFTER / 2) && send_claims } } unless @claims&.alive?
      @claims.name, @claims[:fork_safe] = "pgvalet", true # Puma needn't warn of it
    end
  rescue ThreadError
    nil # the next checkout tries again
  end

  def examine(conn) # gives its pool's pgvalet
    has = ->(owner, *names) { names.any? { |name| owner.instance_variable_defined?(name) } }
    off(:lease) unless has[conn.pool, *LEASES]
    off(:session) unless has[conn, *DRIVER]
    off(:fence) unless conn.transaction_manager.instance_variable_get(:@connection).equal?(conn)
    admin(conn.pool.db_config) || ADMIN
  end

  def admin(config)
    config.configuration_hash[:pgvalet_admin].presence
  end

  def reload_at(admin, rows)
    began, before = Time.now, TAKEN.keys.select { |at, _| at == admin } # the private ones give their backends back too
    answer = call(admin, "POST", "/v1/reloads", sessions: rows.map(&:claim) + before.filter_map { |key| TAKEN[key] })
    leases = answer.fetch("leases").to_h { |lease| [lease.fetch("session"), lease] }
    before.each { |key| TAKEN.delete(key) if %w[gone unknown].include?(leases.dig(key.last, "outcome")) }
    texts = rows.select(&:owner).map do |row|
      outcome, reason, last = leases.fetch(row.claim[:id], {}).values_at("outcome", "reason", "last_statement")
      kept = outcome == "returned" ? take(row) : [outcome || "not judged", *reason].join(": ")
      TAKEN[[admin, row.claim[:id]]] = row.claim unless kept
      "#{kept ? "left (#{kept})" : "took back"} #{row.claim[:owner]} (#{row.claim[:class]}), held since " \
        "#{row.lease.since.strftime("%T")}, after #{last || "no statement"}, at #{row.claim[:where]}"
    end
    log(:warn, "reload #{answer["id"]}, #{((Time.now - began) * 1000).round} ms: #{texts.join("; ")}") if texts.any?
    rows.count { |row| row.lease.taken }
  rescue StandardError => e
    log(:warn, "pgvalet was of no use, the reload goes on without it: #{e.class}: #{e.message[0, 200].inspect}")
  end

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
    return "its owner is dead: the pool's reaper comes" unless owner.alive?
    return "pinned by a test" if conn.pool.instance_variable_get(:@pinned_connection).equal?(conn)
    return "not leased implicitly" unless implicit?(conn.pool, owner, conn)
    return "in a transaction" if lease.beginning || conn.open_transactions > 0
    return "busy" unless wire(conn) == [PG::PQTRANS_IDLE, row.claim[:id]]
    "awake" unless asleep?(owner, lease.thread)
  end

  def implicit?(pool, owner, conn)
    leases, cached = LEASES.map { |name| pool.instance_variable_get(name) }
    return leases[owner].connection.equal?(conn) && leases[owner].sticky if leases # 7.2 on; not sticky: a with_connection block
    cached && cached[owner].equal?(conn)
  end

  def asleep?(owner, thread) # a fiber sleeps while its thread does, or runs the reloader
    still = owner.is_a?(Thread) ? owner.status == "sleep" : thread == Thread.current || thread&.status == "sleep"
    frame = still && frames(owner).find { |it| !WAITING.match?(it.path) }
    frame && !RAILS.match?(frame.path)
  end

  def table
    POOLS.keys.flat_map do |pool|
      admin = POOLS[pool]
      conns = pool.synchronize { Array(pool.connections).tap { |all| POOLS.delete(pool) if all.empty? } }
      conns.filter_map { |conn| row(admin, conn) }
    end
  end

  def row(admin, conn)
    id, owner, lease = wire(conn)&.last, conn.owner, conn.pgvalet ||= Lease.new(Time.now)
    return if id.nil? || owner == Thread.current || owner == Fiber.current
    held = { class: owner.class.name, held_for: "#{((Time.now - lease.since) * 1000).round}ms", where: where(owner) } if owner
    Row.new(admin, conn, owner, lease, { id: id, owner: owner ? title(owner) : "", state: owner ? "held" : "resting", **held.to_h })
  end

  def send_claims # tells who it is while something stays held, and once more when nothing does
    tables = table.group_by(&:admin)
    long = tables.select { |_, rows| rows.any? { |row| row.owner && Time.now - row.lease.since >= PARK_AFTER } }.keys
    (long | @told.to_a).each { |admin| tell(admin, tables.fetch(admin, []).map(&:claim)) }
    @told = long
  end

  def tell(admin, claims)
    call(admin, "PUT", "/v1/claims", source: "#{Socket.gethostname}:#{Process.pid}", claims: claims)
  rescue StandardError => e # the next reload says it aloud
    log(:debug, "pgvalet got no claims: #{e.class}: #{e.message[0, 200]}")
  end

  def call(admin, verb, path, body = nil)
    uri, json = URI(admin), body ? JSON.generate(body) : ""
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
    driver = DRIVER.filter_map { |name| conn.instance_variable_get(name) }.first
    return unless defined?(PG::Connection) && driver.is_a?(PG::Connection) # another database's, or not connected yet
    status = driver.transaction_status # active: somebody may be inside libpq
    id = status == PG::PQTRANS_ACTIVE ? conn.pgvalet&.session : driver.parameter_status("pgvalet.session")&.to_i
    conn.pgvalet&.session = id # from 7.1 on it is known only after the first statement
    [status, id]
  rescue PG::Error # it was closed
    nil
  end

  def frames(owner)
    owner.respond_to?(:backtrace_locations) ? owner.backtrace_locations.to_a : [] # Ruby 2.7 has none of fibers
  end

  def where(owner)
    all = frames(owner)
    place(all.find { |at| !FOREIGN.match?(at.path) } || all.first)
  end

  def title(owner) # or where it was created, or, if that was in a gem, where it came into the app
    name = owner.is_a?(Thread) ? owner.name : owner.try(:annotation) # which Async gives its fibers
    made = owner.inspect[/ (\S+:\d+)/, 1].to_s
    first = frames(owner).reverse.find { |at| !FOREIGN.match?(at.path) } if made.empty? || FOREIGN.match?(made)
    name.to_s.presence || place(first) || made.presence || "unnamed"
  end

  def place(frame)
    "#{frame.path.delete_prefix("#{defined?(Rails.root) && Rails.root || Dir.pwd}/")}:#{frame.lineno}" if frame
  end

  def off(part)
    OFF[part] = OFF.fetch(part) { log(:warn, PRIVATE.fetch(part)) }
  end

  def log(level, text)
    (ActiveRecord::Base.logger || (@logger ||= Logger.new($stderr))).public_send(level, "[pgvalet] #{text}") && nil
  end
end

ActiveSupport.on_load(:active_record) { Pgvalet.install } unless Pgvalet::ADMIN.empty?
