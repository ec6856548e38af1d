# frozen_string_literal: true

# One reload among parked, resting, executing, in-transaction, pinned, explicit and dead owners: each has its outcome, and
# whoever is busy is not disturbed: it keeps its very connection, and what it does is whole.
require_relative "app"
include Support

HELD = {} # by name: the connection each owner holds
workers = Hash.new { |all, name| all[name] = Worker.new(name) }
hold = ->(name) { HELD[name] = Job.connection }

workers["dead"].run { hold["dead"].execute("SELECT 1") }
workers["resting"].run { hold["resting"].execute("SELECT 1") }
workers["executing"].run { hold["executing"].execute("SELECT 1") } # from 7.1 on a connection is known after its first statement
%w[resting executing].each { |name| workers[name].run { QueueRecord.connection_pool.release_connection } }
workers["executing"].run { hold["executing"] }
workers["lazy transaction"].run { hold["lazy transaction"].execute("SELECT 1") }

# Each parks in its own way; `gate` is what it waits for.
gates = Hash.new { |all, name| all[name] = Queue.new }
workers["executing"].start do
  Job.connection.select_value("SELECT 'mine' FROM pg_sleep(2)")
end
workers["transaction"].start do
  Job.transaction do
    hold["transaction"]
    Job.create!(name: "whole", round: 1)
    gates["transaction"].pop
    Job.create!(name: "whole", round: 2)
  end
end
workers["lazy transaction"].start do # ActiveRecord has not sent BEGIN yet: pgvalet sees an idle session
  Job.transaction do
    gates["lazy transaction"].pop
    2.times { |round| Job.create!(name: "lazy", round: round) }
  end
end
workers["explicit"].start do
  HELD["explicit"] = conn = QueueRecord.connection_pool.checkout
  conn.execute("SELECT 1")
  gates["explicit"].pop
  conn.select_value("SELECT 'mine'").tap { QueueRecord.connection_pool.checkin(conn) }
end
workers["temporary"].start do
  hold["temporary"].execute("CREATE TEMPORARY TABLE scratch AS SELECT 'mine' AS word")
  gates["temporary"].pop
  Job.connection.select_value("SELECT word FROM scratch")
end
workers["listening"].start do
  hold["listening"].execute("LISTEN word")
  gates["listening"].pop
  Job.connection.select_value("SELECT pg_listening_channels()")
end
workers["parked"].run { hold["parked"].execute("SELECT 1") }

busy = %w[executing transaction explicit temporary listening] + ["lazy transaction"]
busy.each do |name|
  eventually("#{name} holds a connection") { HELD[name] }
  workers[name].asleep!
end
watcher = ActiveRecord::Base.connection
sees = lambda do |state|
  eventually("PostgreSQL sees one #{state}") do
    watcher.uncached { watcher.select_value("SELECT count(*) FROM pg_stat_activity WHERE state = '#{state}' AND query !~ 'pg_stat'") }.positive?
  end
end
sees["active"]
sees["idle in transaction"]
eventually("the others are idle") { gates.size == busy.size - 1 && gates.values.all? { |gate| gate.num_waiting == 1 } }
ActiveRecord::Base.connection_handler.clear_active_connections!

workers["dead"].thread.kill.join
took = answered_reload
puts App.log.last
record = pgvalet("/v1/reloads/#{App.log.last[/reload (\d+)/, 1]}")
outcomes = record["leases"].to_h { |lease| [lease["owner"].to_s.delete_suffix(" (Thread)"), [lease["outcome"], *lease["reason"]].join(": ")] }
{
  "parked" => "returned", "dead" => "returned", "explicit" => "returned", "lazy transaction" => "returned",
  "executing" => "busy: a request is unanswered", "transaction" => "busy: in a transaction",
  "temporary" => "pinned: temp", "listening" => "pinned: listen"
}.each { |name, outcome| check "pgvalet's word on #{name}: #{outcome}", outcomes[name].to_s.delete_suffix(": held no backend") == outcome, outcomes }
check "pgvalet's word on what rests: resting", record["counts"]["resting"].positive?, record["counts"]
check "the dead owner's is left to the pool's reaper", App.log.last.include?("left (its owner is dead: the pool's reaper comes) dead")
check "a reload among busy owners doesn't wait for them", took < App::TIMEOUT, took
pool = QueueRecord.connection_pool
check "the parked one was taken back", !pool.connections.include?(HELD["parked"])
pool.reap
check "which takes it", !HELD["dead"].in_use?
busy.each { |name| check "#{name} keeps its connection", pool.connections.include?(HELD[name]) && HELD[name].owner == workers[name].thread }

3.times { reload }
gates.each_value { |gate| gate << :go }
{ "executing" => "mine", "explicit" => "mine", "temporary" => "mine", "listening" => "word" }.each do |name, answer|
  check "#{name} gets its own answer", workers[name].result == answer
end
["transaction", "lazy transaction"].each { |name| workers[name].result }
check "the transaction committed whole", Job.where(name: "whole").pluck(:round).sort == [1, 2]
check "the lazily begun one too", Job.where(name: "lazy").pluck(:round).sort == [0, 1]
check "the parked one goes on with another connection", workers["parked"].run { Job.connection.select_value("SELECT 1") } == 1
