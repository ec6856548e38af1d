# frozen_string_literal: true

# The glue in a plain ActiveRecord script, with an admin listener that certifies everything: the worst that pgvalet could
# ever say, so that what is left alone here is left by the local recheck. The sessions' ids are the backends' own.
require "logger"
require "stringio"
require "active_record"
require "pg"
require_relative "fake_admin"
require_relative "support"

FAKE = FakeAdmin.new(unix: ENV["FAKE_SOCKET"]) { |verb, path, body| FakeAdmin.certify(verb, path, body) }
ENV["PGVALET_ADMIN_URL"] ||= FAKE.url
ENV["PGVALET_PARK_AFTER"] = "3600s" # the background thread stays out of it
LOG = StringIO.new
ActiveRecord::Base.logger = Logger.new(LOG, level: :warn)
PG::Connection.prepend(Module.new do
  def parameter_status(name)
    name == "pgvalet.session" ? backend_pid.to_s : super
  end
end)

# What the test wants Rails to lack, before the glue looks. A variable that a later Rails names otherwise is so to all who
# look for it by name, and still there for Rails itself.
RENAMED = Module.new do
  define_method(:instance_variable_defined?) { |name| !GONE.include?(name) && super(name) }
  define_method(:instance_variable_get) { |name| GONE.include?(name) ? nil : super(name) }
end
GONE = { "lease" => %i[@leases @thread_cached_conns], "session" => %i[@raw_connection @connection], "manager" => %i[@connection] }.fetch(ENV["LACKS"], [])
BEFORE = {
  "force" => -> { ActiveRecord::ConnectionAdapters::ConnectionPool.remove_method(:clear_reloadable_connections) },
  "fence" => -> { ActiveRecord::ConnectionAdapters::TransactionManager.send(:private, :begin_transaction) },
  "executor" => -> { ActiveSupport::Reloader.send(:remove_method, :require_unload_lock!) },
  "lease" => -> { ActiveRecord::ConnectionAdapters::ConnectionPool.prepend(RENAMED) },
  "session" => -> { ActiveRecord::ConnectionAdapters::AbstractAdapter.prepend(RENAMED) },
  "manager" => -> { ActiveRecord::ConnectionAdapters::TransactionManager.prepend(RENAMED) },
  "all" => -> { ActiveRecord::ConnectionAdapters::ConnectionPool.remove_method(:remove) },
}.freeze
BEFORE.fetch(ENV["LACKS"], -> {}).call
require_relative "../../deploy/rails/pgvalet"
ActiveRecord::Base.establish_connection(ENV.fetch("APP_DATABASE_URL") + "?pool=3&checkout_timeout=1")

module Plain
  POOL = ActiveRecord::Base.connection_pool

  module_function

  # A worker that holds an implicitly leased connection and is asleep, and that connection.
  def parked(name = "dispatcher")
    worker = Support::Worker.new(name)
    conn = worker.run { ActiveRecord::Base.connection.tap { |held| held.execute("SELECT 1") } }
    worker.asleep!
    [worker, conn]
  end

  def driver(conn)
    conn.instance_variable_get(:@raw_connection) || conn.instance_variable_get(:@connection)
  end

  def release
    ActiveRecord::Base.connection_handler.clear_active_connections!
  end

  def pooled?(conn)
    POOL.connections.include?(conn)
  end
end
