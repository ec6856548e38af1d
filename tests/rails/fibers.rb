# frozen_string_literal: true

# Fibers that own connections (isolation_level = :fiber, from 7.0 on), parked by hand and under a scheduler.
ENV["APP_ISOLATION"] = "fiber"
require "rails"
if Rails.version < "7.0"
  puts "skipped: in Rails #{Rails.version} threads own connections"
  exit
end
require_relative "app"
include Support

def pooled?(conn)
  conn.pool.connections.include?(conn)
end

# Leases, parks, and says what it gets when it wakes.
def dispatcher(held)
  Fiber.new do
    held << Job.connection.tap { |conn| conn.execute("SELECT 1") }
    Fiber.yield
    Job.connection.select_value("SELECT 'mine'")
  end.tap(&:resume)
end

held, wake, answers = Queue.new, Queue.new, Queue.new
elsewhere = Thread.new do
  fibers = Array.new(2) { dispatcher(held) }
  wake.pop
  fibers.each { |fiber| answers << fiber.resume }
end
here = dispatcher(held)
conns = Array.new(3) { held.pop }
eventually("the other thread sleeps") { elsewhere.status == "sleep" }
check "each fiber owns a connection", conns.map(&:owner).uniq.size == 3 && conns.map(&:owner).all?(Fiber)
eventually("pgvalet knows where they were made, and where they sleep") do
  leaks = pgvalet("/v1/leaks")["leaks"].select { |leak| leak["owner"].match?(/fibers\.rb:\d+ \(Fiber\)\z/) && leak["where"].to_s.match?(/fibers\.rb:\d+\z/) }
  leaks.size == 3
end
answered_reload
puts App.log.last
check "all three were taken back", conns.none? { |conn| pooled?(conn) }
wake << :go
check "they go on, each with another connection", [here.resume, answers.pop, answers.pop] == ["mine"] * 3
elsewhere.join

begin
  require "async"
  require "async/queue"
rescue LoadError
  puts "skipped: no Async here (Debian: ruby-async)"
  exit
end
gates, held = Queue.new, {}
reactor = Thread.new do
  Async do |task|
    inner = Hash.new { |all, name| all[name] = Async::Queue.new }
    task.async(annotation: "parked") do
      held["parked"] = Job.connection.tap { |conn| conn.execute("SELECT 1") }
      inner["parked"].dequeue
      answers << Job.connection.select_value("SELECT 'parked'")
    end
    task.async do
      Job.transaction do
        held["transaction"] = Job.connection.tap { |conn| conn.execute("SELECT 1") }
        inner["transaction"].dequeue
        answers << Job.connection.select_value("SELECT 'transaction'")
      end
    end
    task.async do
      held["executing"] = Job.connection.tap { |conn| conn.execute("SELECT 1") }
      answers << Job.connection.select_value("SELECT 'executing' FROM pg_sleep(2)")
    end
    task.async do
      gates.pop
      %w[parked transaction].each { |name| inner[name].enqueue(:go) }
    end
  end
end
eventually("all three hold a connection, one executes") do
  reactor.join(0) && reactor.value # its error, where it ended
  held.size == 3 && gates.num_waiting == 1 && pgvalet("/v1/leases")["leases"].any? { |lease| lease["state"] == "active" }
end
puts "Async #{Async::VERSION}"
answered_reload
puts App.log.last
check "the parked task's connection was taken back", !pooled?(held["parked"])
check "the others' were left", %w[transaction executing].all? { |name| pooled?(held[name]) }
gates << :go
reactor.join(DEADLINE) or abort "the reactor hangs"
check "each task got its own answer", Array.new(3) { answers.pop }.sort == %w[executing parked transaction]
