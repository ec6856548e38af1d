# frozen_string_literal: true

# A background thread inserts and parks on a queue; the code is reloaded. Without the glue (PGVALET_ADMIN_URL unset)
# once, with it 50 times, the thread waking at a random moment in half of them (SEED). The times are printed.
require_relative "app"
include Support

ROUNDS = 50
worker = Worker.new("dispatcher")
worker.run { Job.connection && Job.create!(name: "first", round: 0) } # from 7.2 on create! alone holds nothing
worker.asleep!

if Pgvalet::ADMIN.empty?
  took = reload
  puts format("without the glue: %.0f ms with a checkout_timeout of %.0f ms", took * 1000, App::TIMEOUT * 1000)
  check "without the glue a reload waits twice checkout_timeout", took >= App::TIMEOUT * 2
  exit
end

random = Random.new(ENV.fetch("SEED", "1").to_i)
pool = QueueRecord.connection_pool
fenced = 0
woken = []
taken = 0
wakes = (1..ROUNDS).to_a.shuffle(random: random).first(ROUNDS / 2)
took = (1..ROUNDS).map do |round|
  worker.run { Job.connection.select_value("SELECT 1") }
  worker.asleep!
  held = pool.connections.find { |conn| conn.owner == worker.thread }
  if wakes.include?(round)
    waker = Thread.new(random.rand * 0.02, "woken #{woken.size}") do |moment, name|
      sleep moment # nothing is waited for: this is the random moment
      worker.start do
        Job.transaction { 2.times { |half| Job.create!(name: name, round: half) } }
      rescue Pgvalet::Taken
        fenced += 1
        retry
      end
      woken << name
    end
  end
  seconds = reload
  waker ? waker.join && worker.result : (taken += 1 unless pool.connections.include?(held))
  seconds
end

# A machine that is busy with something else shows as milliseconds here; a reload that waits, as twice checkout_timeout.
_, longest = timings("with the glue", took)
check "no reload comes near checkout_timeout", longest < App::TIMEOUT * 500, longest
late = App.log.grep(/of no use|left \(awake\)/).size # for the glue's limits; or a busy machine had not let it sleep yet
check "what stayed parked was taken back, each time that pgvalet answered in time and it slept", taken >= ROUNDS / 2 - late && taken.positive?, [taken, late]
done = Job.where("name LIKE 'woken %'").group(:name)
check "what the thread did when it woke is there", done.count == woken.to_h { |name| [name, 2] }
check "and in one transaction each", done.having("count(DISTINCT xmin::text) <> 1").count.empty?
puts "transactions that began on a connection in the moment it was taken, and were begun again: #{fenced}"

worker.run { Job.connection && Job.create!(name: "last", round: 0) }
worker.asleep!
answered_reload
line = App.log.last
puts line
[/took back dispatcher \(Thread\)/, /held since \d\d:\d\d:\d\d/, /after INSERT INTO "jobs"|after .*COMMIT/, %r{at \S*support\.rb:\d+}].each do |part|
  check "the log names #{part.source}", line.match?(part), line
end
