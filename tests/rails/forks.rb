# frozen_string_literal: true

# A process that forks (Puma's workers, Spring): the child speaks for its own connections, from its first one on, and
# neither claims, submits nor takes what is its parent's.
require_relative "app"
include Support

leaks = -> { pgvalet("/v1/leaks")["leaks"].select { |lease| lease["basis"] == "declared" } }
named = ->(name) { eventually("pgvalet knows #{name}") { leaks.call.find { |lease| lease["owner"] == "#{name} (Thread)" } } }
took, parent = %w[taken parent].map { |name| Worker.new(name).tap { |it| it.run { Job.connection.execute("SELECT 1") } }.tap(&:asleep!) }
kept = took.run { Job.connection }
parent.run { Job.connection.begin_transaction(_lazy: false) } # so that this one stays
took.asleep!
answered_reload
check "the parent has taken one back", Pgvalet::TAKEN.keys.size == 1 && kept.pgvalet.taken
parent.run { Job.connection.rollback_transaction }

down, up = IO.pipe, IO.pipe
child = fork do
  [down[1], up[0]].each(&:close)
  say = ->(what) { up[1].puts(what) }
  say[Pgvalet.reload!.inspect] # before its first connection
  worker = Worker.new("child").tap { |it| it.run { Job.connection.execute("SELECT 1") } }
  worker.asleep!
  say["#{Pgvalet::TAKEN.keys.size} #{Pgvalet.send(:table).map { |row| row.claim[:owner] }.join(",")}"]
  down[0].gets # until pgvalet was asked
  say[Pgvalet.reload!.inspect]
  down[0].gets
  exit!
end
[down[0], up[1]].each(&:close)
check "its reload before its first connection submits nothing", up[0].gets == "0\n"
line = up[0].gets
check "its table has its own connection only", line == "0 child\n", line
pids = { "parent" => Process.pid, "child" => child }.to_h { |name, pid| [name, [named[name].dig("process", "pid"), pid]] }
check "both claim, each for its own process", pids.values.all? { |seen, pid| seen == pid }, pids
down[1].puts
check "the child's reload takes its own", up[0].gets == "1\n"
conn = parent.run { Job.connection }
check "and leaves the parent's", conn.pool.connections.include?(conn) && conn.owner == parent.thread
check "which the parent still claims", named["parent"]["claim"] == "held"
down[1].puts
Process.wait(child)
check "the parent goes on", parent.run { Job.connection.select_value("SELECT 'mine'") } == "mine"
