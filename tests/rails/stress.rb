# frozen_string_literal: true

# Parked owners, transactions and web requests under continuous reloads, for STRESS_SECONDS (12): nobody gets an answer
# that is somebody else's, no transaction is torn, nothing fails.
require_relative "app"
include Support

SECONDS = ENV.fetch("STRESS_SECONDS", "12").to_f
SEED = ENV.fetch("SEED", Random.new_seed.to_s).to_i % 2**32
puts "seed #{SEED}, #{SECONDS} s"
STOP = now + SECONDS
COUNTS = Hash.new(0)
LOCK = Mutex.new

def count(what)
  LOCK.synchronize { COUNTS[what] += 1 }
end

def own_answer(token, answer)
  abort "crossed: #{token} got #{answer.inspect}" unless answer == token
  count("answers")
end

# The fence raises before anything is executed: so it is begun again.
def whole(model)
  model.transaction { yield }
rescue Pgvalet::Taken
  count("fenced")
  retry
end

def actor(name, number)
  random = Random.new(SEED + number)
  Thread.new do
    Thread.current.name = name
    step = 0
    yield random, step += 1 while now < STOP
  end
end

gates = []
park = lambda do |gate|
  gate.pop
  count("parks")
end

parked = 6.times.map do |i|
  gates << (gate = Queue.new)
  model = i.even? ? Job : Note
  actor("parked-#{i}", i) do |random, step|
    token = "parked-#{i}-#{step}"
    kept = model.connection
    own_answer(token, kept.select_value("SELECT '#{token}'"))
    park[gate]
    own_answer(token, kept.select_value("SELECT '#{token}'")) if random.rand < 0.3 # it may still hold the object
    own_answer(token, model.connection.select_value("SELECT '#{token}'"))
    whole(model) { 2.times { |half| model.create!(name: token, round: half) } } if random.rand < 0.5
  end
end
busy = 4.times.map do |i|
  gates << (gate = Queue.new)
  model = i.even? ? Job : Note
  actor("transaction-#{i}", 100 + i) do |random, step|
    token = "transaction-#{i}-#{step}"
    whole(model) do
      park[gate] if random.rand < 0.3 # begun, but not sent
      model.create!(name: token, round: 0)
      park[gate] if random.rand < 0.7
      own_answer(token, model.connection.select_value("SELECT '#{token}'"))
      model.create!(name: token, round: 1)
    end
    park[gate] if random.rand < 0.5
  end
end
web = 3.times.map do |i|
  actor("web-#{i}", 200 + i) do |random, step|
    Rails.application.executor.wrap do
      token = "web-#{i}-#{step}"
      own_answer(token, Note.connection.select_value("SELECT '#{token}'"))
      Item.transaction { 2.times { |half| Item.create!(name: token, round: half) } }
      count("requests")
    end
    sleep random.rand * 0.003 # the next request comes at a random moment
  end
end
waker = actor("waker", 300) do |random, _|
  gates.sample(random: random) << :go
  sleep random.rand * 0.01 # a random moment
end
Pgvalet.singleton_class.prepend(Module.new do
  define_method(:reload!) { super().tap { |taken| taken ? taken.times { count("taken back") } : count("without pgvalet") } }
end)
signals = actor("signals", 301) do |random, _| # many more than Rails' reloader can, and beside it
  Pgvalet.reload!
  sleep random.rand * 0.005
end
took = []
took << reload while now < STOP

gates.each { |gate| 1000.times { gate << :go } }
[*parked, *busy, *web, waker, signals].each { |thread| thread.join(DEADLINE) or abort "#{thread.name} hangs: #{thread.backtrace.first(5)}" }
timings("under stress", took)
puts "#{COUNTS.sort.map { |what, number| "#{number} #{what}" }.join(", ")}"
torn = [Job, Note, Item].map { |model| model.group(:name).having("count(*) <> 2 OR count(DISTINCT xmin::text) <> 1").count }
check "no transaction is torn: two rows each, of one transaction", torn.all?(&:empty?), torn
check "connections were taken back", COUNTS["taken back"].positive?
puts "left: #{App.log.join.scan(/left \(([^)]*)\)/).flatten.tally.sort.to_h}"
trouble = App.log.grep(/no use|gone/).grep_v(/Timeout/) # a busy process may be late for its own limits: then it goes on without
check "the log speaks of no trouble", trouble.empty?, trouble.first
