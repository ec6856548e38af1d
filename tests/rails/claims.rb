# frozen_string_literal: true

# While a background thread stays parked, pgvalet knows its name, and the place where it sleeps; no longer once it let go.
require_relative "app"
include Support

leaks = -> { pgvalet("/v1/leaks").fetch("leaks") }
worker = Worker.new("dispatcher")
worker.run { Job.connection && Job.create!(name: "first", round: 0) }
leak = eventually("pgvalet sees a declared leak") { leaks.call.find { |lease| lease["basis"] == "declared" } }
puts leak.slice("owner", "evidence", "verdict", "basis", "held_for", "where", "last_statement", "remedy")
check "it has the owner's name", leak["owner"] == "dispatcher (Thread)", leak["owner"]
check "and the place where it sleeps", leak["where"].to_s.match?(/support\.rb:\d+\z/), leak["where"]
require "rake"
Rails.application.load_tasks
said = StringIO.new.tap { |out| ($stdout = out) && Rake::Task["pgvalet:leaks"].invoke }.string
$stdout = STDOUT
check "rake pgvalet:leaks says both", said.match?(/dispatcher \(Thread\) \(claim\) parked for \S+.* at \S*support\.rb:\d+, after INSERT/), said
worker.run { QueueRecord.connection_pool.release_connection }
eventually("the claim is withdrawn") { leaks.call.empty? }
check "no leak is left once the owner gave its connection back", true
