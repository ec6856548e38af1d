# frozen_string_literal: true

# What the glue takes, what it leaves, and what it says. Each case that needs a Rails without some part runs by itself.
require "minitest/autorun"
require "open3"
require "tmpdir"
require_relative "plain"

class GlueTest < Minitest::Test
  include Plain

  def setup
    LOG.truncate(LOG.rewind)
    FAKE.answer { |*request| FakeAdmin.certify(*request) }
    FAKE.requests.clear
    Pgvalet::TAKEN.clear
    @workers = []
  end

  def teardown
    @workers.each { |worker| worker.thread.kill.join }
    Plain::POOL.disconnect!
  end

  def parked(name = "dispatcher")
    super.tap { |worker, _| @workers << worker }
  end

  def worker(name = "worker")
    Support::Worker.new(name).tap { |worker| @workers << worker }
  end

  def left(conn, why)
    assert_equal 0, Pgvalet.reload!, LOG.string
    assert pooled?(conn), "it was taken"
    assert_includes LOG.string, "left (#{why})"
  end

  def test_a_parked_owner_keeps_a_private_session_and_leases_another
    owner, conn = parked
    assert_equal 1, Pgvalet.reload!
    refute pooled?(conn)
    mine, other = owner.run { [conn.select_value("SELECT 'mine'"), ActiveRecord::Base.connection] }
    assert_equal "mine", mine
    refute_same conn, other
    assert pooled?(other)
  end

  def test_the_table_says_who_since_when_and_where
    parked
    ActiveRecord::Base.connection_pool.with_connection { Pgvalet.reload! }
    verb, path, body = FAKE.requests.last
    assert_equal %w[POST /v1/reloads], [verb, path]
    claims = body["sessions"]
    assert_equal 1, claims.size, "the reloader's own connection is not for taking"
    claim = claims.first
    assert_equal %w[dispatcher Thread held], claim.values_at("owner", "class", "state")
    assert_match(/\A\d+ms\z/, claim["held_for"])
    assert_match(/support\.rb:\d+\z/, claim["where"])
  end

  def test_an_unnamed_owner_is_named_by_where_it_was_created
    worker(nil).run { ActiveRecord::Base.connection.execute("SELECT 1") }
    Pgvalet.reload!
    assert_match(/\A\S+support\.rb:\d+\z/, FAKE.requests.last[2]["sessions"].first["owner"])
  end

  def test_a_resting_connection_is_told_and_left
    conn = worker.run { ActiveRecord::Base.connection.tap { |held| held.execute("SELECT 1") && Plain.release } }
    assert_equal 0, Pgvalet.reload!
    assert_equal "resting", FAKE.requests.last[2]["sessions"].first["state"]
    assert pooled?(conn)
    assert_empty LOG.string
  end

  def test_an_explicit_checkout_is_left
    owner = worker
    conn = owner.run { Plain::POOL.checkout.tap { |held| held.execute("SELECT 1") } }
    owner.asleep!
    left conn, "not leased implicitly"
    owner.run { Plain::POOL.checkin(conn) }
  end

  def test_a_transaction_that_has_not_sent_begin_is_left
    gate, held = Queue.new, Queue.new
    owner = worker
    owner.run { ActiveRecord::Base.connection.execute("SELECT 1") }
    owner.start { ActiveRecord::Base.transaction { held << ActiveRecord::Base.connection && gate.pop } }
    conn = held.pop
    owner.asleep!
    left conn, "in a transaction"
    gate << :go
    owner.result
  end

  def test_a_transaction_begun_by_hand_is_left
    owner = worker
    conn = owner.run { ActiveRecord::Base.connection.tap { |held| held.execute("BEGIN") } }
    owner.asleep!
    left conn, "busy"
  end

  def test_an_owner_that_is_awake_is_left
    owner, conn = parked
    owner.thread.define_singleton_method(:status) { "run" }
    left conn, "awake"
  end

  def test_an_owner_that_waits_for_a_lock_of_rails_is_left
    owner, conn = parked
    conn.lock_thread = owner.thread if conn.respond_to?(:lock_thread=) # from 7.2 on only tests use the lock
    conn.lock.synchronize do # as another thread's reset of this connection does
      owner.start { conn.execute("SELECT 1") }
      Support.eventually("it waits for the lock") { owner.thread.backtrace.first(3).join.match?(/interlock_aware_monitor/) && owner.thread.status == "sleep" }
      left conn, "awake"
    end
    owner.result
  end

  def test_an_owner_that_waits_at_the_fence_is_awake
    owner, conn = parked
    row = Pgvalet.send(:table).first
    refusal = Pgvalet::FENCE.synchronize do
      owner.start { conn.transaction {} }
      Support.eventually("it waits at the fence") { owner.thread.backtrace.first.include?("pgvalet.rb") && owner.thread.status == "sleep" }
      Pgvalet.send(:refusal, row)
    end
    assert_equal "awake", refusal
    owner.result
  end

  def test_a_connection_that_changed_hands_meanwhile_is_left
    owner, conn = parked
    FAKE.answer do |*request|
      owner.run { Plain.release }
      owner.run { ActiveRecord::Base.connection }
      FakeAdmin.certify(*request)
    end
    left conn, "changed hands"
  end

  def test_what_pgvalet_does_not_certify_is_left
    _, conn = parked
    FAKE.answer { |_, _, body| FakeAdmin.ok(JSON.generate(id: "7", leases: [{ session: body["sessions"][0]["id"], outcome: "pinned", reason: "temp" }])) }
    left conn, "pinned: temp"
  end

  def test_a_transaction_on_a_taken_connection_raises_before_anything_is_executed
    owner, conn = parked
    Pgvalet.reload!
    ran = false
    assert_raises(Pgvalet::Taken) { owner.run { conn.transaction { ran = true } } }
    refute ran
    assert_equal "again", owner.run { ActiveRecord::Base.transaction { ActiveRecord::Base.connection.select_value("SELECT 'again'") } }
  end

  def test_a_private_session_is_submitted_again_until_it_is_gone
    owner, conn = parked
    2.times { Pgvalet.reload! }
    ids = ->(request) { request[2]["sessions"].map { |claim| claim["id"] } }
    admin, id = Pgvalet::TAKEN.keys.first
    assert_equal FAKE.url, admin
    owner.run { ActiveRecord::Base.connection.execute("SELECT 1") }
    owner.asleep!
    FAKE.answer { |_, _, body| FakeAdmin.ok(JSON.generate(id: "1", leases: body["sessions"].map { |claim| { session: claim["id"], outcome: "gone" } })) }
    2.times { Pgvalet.reload! }
    assert_equal [true, false], FAKE.requests.last(2).map { |request| ids[request].include?(id) }
    assert_same conn.pgvalet.taken, true
  end

  def test_a_taken_connection_never_comes_back_into_the_pool
    owner, conn = parked
    Pgvalet.reload!
    owner.run { conn.close }
    refute pooled?(conn)
    refute_same conn, worker.run { ActiveRecord::Base.connection }
  end

  def test_who_waits_for_a_connection_gets_one
    parked("one")
    parked("two")
    parked("three")
    waiting = worker.start { ActiveRecord::Base.connection.select_value("SELECT 'served'") }
    Support.eventually("it queues") { Plain::POOL.num_waiting_in_queue == 1 }
    assert_equal 3, Pgvalet.reload!
    assert_equal "served", waiting.result
  end

  def test_a_pool_whose_adapter_must_reload_goes_through_it
    conn = worker.run { ActiveRecord::Base.connection.tap { Plain.release } }
    Plain::POOL.clear_reloadable_connections!
    assert pooled?(conn), "PostgreSQL's need no reload"
    conn.define_singleton_method(:requires_reloading?) { true }
    Plain::POOL.clear_reloadable_connections!
    refute pooled?(conn)
  end

  def test_a_dead_owner_is_left_to_the_reaper
    owner, conn = parked
    owner.thread.kill.join
    left conn, "its owner is dead: the pool's reaper comes"
    Plain::POOL.reap
    refute conn.in_use?
  end

  def test_a_connection_that_never_ran_a_statement_is_not_reached_for
    conn = worker.run { ActiveRecord::Base.connection }
    skip "before 7.1 a checkout connects" if conn.instance_variable_get(:@raw_connection) || conn.connected?
    @workers.last.asleep!
    assert_equal 0, Pgvalet.reload!
    assert_empty FAKE.requests, "there is nothing to submit"
    refute conn.connected?, "and asking connects nothing"
  end if ActiveRecord.version >= Gem::Version.new("7.1")

  def test_a_transactional_tests_connection_is_left
    owner = worker
    conn = owner.run { ActiveRecord::Base.connection.tap { |held| held.begin_transaction(joinable: false, _lazy: false) } }
    owner.asleep!
    left conn, "in a transaction"
    owner.run { conn.rollback_transaction }
  end

  if ActiveRecord::Base.respond_to?(:lease_connection) # 7.2
    def test_a_connection_pinned_by_a_test_is_left_even_outside_of_its_transaction
      owner = worker
      conn = owner.run { Plain::POOL.lease_connection.tap { Plain::POOL.pin_connection!(true) } }
      owner.asleep!
      assert_same conn, worker.run { Plain::POOL.checkout }, "all threads share it"
      left conn, "pinned by a test"
      owner.run { conn.rollback_transaction }
      left conn, "pinned by a test"
    ensure
      owner.run { Plain::POOL.unpin_connection! }
    end

    def test_a_with_connection_block_is_left
      gate, held = Queue.new, Queue.new
      owner = worker.start { ActiveRecord::Base.with_connection { |conn| conn.execute("SELECT 1") && held << conn && gate.pop } }
      conn = held.pop
      owner.asleep!
      left conn, "not leased implicitly"
      gate << :go
      owner.result
    end

    def test_where_permanent_checkouts_are_forbidden_a_lease_is_taken
      ActiveRecord.permanent_connection_checkout = :disallowed
      owner = worker
      conn = owner.run { ActiveRecord::Base.lease_connection.tap { |held| held.execute("SELECT 1") } }
      owner.asleep!
      assert_equal 1, Pgvalet.reload!, LOG.string
      refute pooled?(conn)
      assert_equal "again", owner.run { ActiveRecord::Base.with_connection { |other| other.select_value("SELECT 'again'") } }
      assert_raises(ActiveRecord::ActiveRecordError) { owner.run { ActiveRecord::Base.connection } }
    ensure
      ActiveRecord.permanent_connection_checkout = true
    end
  end

  def test_each_pgvalet_hears_of_its_own_databases_and_one_that_is_down_harms_no_other
    there, gone = FakeAdmin.new { |*request| FakeAdmin.certify(*request) }, FakeAdmin.new {}
    gone.close
    owners = { "here" => nil, "there" => there.url, "nowhere" => gone.url }.to_h do |name, admin|
      model = Class.new(ActiveRecord::Base) { self.abstract_class = true }
      Object.const_set("#{name.capitalize}Record", model)
      model.establish_connection(["#{ENV["APP_DATABASE_URL"]}?pool=2", *(admin && "pgvalet_admin=#{admin}")].join("&"))
      owner = worker(name)
      owner.run { model.connection.execute("SELECT 1") }
      owner.asleep!
      [name, model.connection_pool]
    end
    assert_equal 2, Pgvalet.reload!, LOG.string
    told = [FAKE, there].map { |admin| admin.requests.map { |_, _, body| body["sessions"].map { |claim| claim["owner"] } } }
    assert_equal [[["here"]], [["there"]]], told
    assert_equal [0, 0, 1], owners.values.map { |pool| pool.connections.size }
    assert_match(/of no use.*ECONNREFUSED/, LOG.string)
  ensure
    owners&.each_value(&:disconnect!)
  end

  def test_claims_are_sent_for_what_is_held_long_and_withdrawn
    owner, = parked
    lease = Plain::POOL.connections.first.pgvalet
    FAKE.requests.clear
    Pgvalet.send(:send_claims)
    assert_empty FAKE.requests, "not yet"
    lease.since -= Pgvalet::PARK_AFTER
    Pgvalet.send(:send_claims)
    owner.run { Plain.release }
    2.times { Pgvalet.send(:send_claims) }
    assert_equal [["held"], ["resting"]], FAKE.requests.map { |_, _, body| body["claims"].map { |claim| claim["state"] } }
    assert_equal [%w[PUT /v1/claims]] * 2, FAKE.requests.map { |request| request.first(2) }
    assert_match(/:#{Process.pid}\z/, FAKE.requests.last[2]["source"])
  end

  def test_no_connection_through_pgvalet_means_no_call
    _, conn = parked
    Plain.driver(conn).define_singleton_method(:parameter_status) { |_| nil }
    assert_equal 0, Pgvalet.reload!
    assert_empty FAKE.requests
    assert pooled?(conn)
  end

  def test_a_missing_part_is_switched_off_and_said_once
    { "force" => 1, "fence" => 0, "manager" => 0, "executor" => 1, "lease" => 0, "session" => 0, "all" => 0 }.each do |lacks, taken|
      output, status = run_case({ "LACKS" => lacks }, <<~RUBY)
        _, conn = Plain.parked
        taken = 2.times.sum { Pgvalet.reload! }
        said = Pgvalet::PRIVATE.fetch(ENV["LACKS"].sub("manager", "fence").to_sym)
        puts taken, LOG.string.scan(said).size
        conn.execute("SELECT 'its own'")
        ActiveRecord::Base.transaction { puts ActiveRecord::Base.connection.select_value("SELECT 'works'") }
      RUBY
      assert_equal [taken.to_s, "1", "works"], output.lines.map(&:chomp), "without #{lacks}: #{output}"
      assert status.success?
    end
  end

  def test_a_unix_socket_and_a_token_are_used
    Dir.mktmpdir do |directory|
      path = File.join(directory, "admin")
      output, = run_case({ "FAKE_SOCKET" => path, "PGVALET_ADMIN_URL" => "unix:#{path}", "PGVALET_ADMIN_TOKEN" => "secret" }, <<~RUBY)
        Plain.parked
        puts Pgvalet.reload!, FAKE.headers.last["authorization"]
      RUBY
      assert_equal "1\nBearer secret\n", output
    end
  end

  def test_without_the_variable_it_does_nothing
    output, = run_case({ "PGVALET_ADMIN_URL" => "" }, <<~RUBY)
      _, conn = Plain.parked
      puts conn.respond_to?(:pgvalet), Plain::POOL.class.ancestors.include?(Pgvalet::Pool)
    RUBY
    assert_equal "false\nfalse\n", output
  end

  def test_the_rake_task_prints_who_parked_and_the_gate_fails
    leak = { owner: "dispatcher (Thread)", parked_for: "9s", where: "app/dispatcher.rb:12", last_statement: "INSERT", remedy: "give it back" }
    { [leak] => [0, 1], [] => [0, 0] }.each do |leaks, exits|
      FAKE.answer { |*| FakeAdmin.ok(JSON.generate(park_after: "5s", leaks: leaks)) }
      said = %w[leaks gate].zip(exits).map do |task, code|
        output, status = rake("pgvalet:#{task}", "PGVALET_ADMIN_URL" => FAKE.url)
        assert_equal code, status.exitstatus, output
        output
      end
      said.each { |output| assert_match(leaks.empty? ? /nobody has parked/ : /dispatcher \(Thread\).*9s.*dispatcher\.rb:12.*INSERT/, output) }
    end
    assert_equal %w[GET /v1/leaks], FAKE.requests.last.first(2)
  end

  def test_the_rake_task_says_that_pgvalet_is_not_there
    output, status = rake("pgvalet:gate", "PGVALET_ADMIN_URL" => "http://127.0.0.1:1")
    assert_match(/ECONNREFUSED/, output)
    assert_equal 3, status.exitstatus
  end

  def rake(task, environment)
    script = <<~RUBY
      require "rake"
      require #{File.expand_path("../../deploy/rails/pgvalet", __dir__).dump}
      Rake::Task.define_task(:environment)
      load #{File.expand_path("../../deploy/rails/pgvalet.rake", __dir__).dump}
      Rake::Task[#{task.dump}].invoke
    RUBY
    Open3.capture2e(environment, RbConfig.ruby, "-W0", "-e", script)
  end

  def run_case(environment, script)
    Open3.capture2e({ "PGVALET_ADMIN_URL" => nil }.merge(environment), RbConfig.ruby, "-W0", "-r#{__dir__}/plain", "-e", script)
  end
end
