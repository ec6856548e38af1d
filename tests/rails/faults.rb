# frozen_string_literal: true

# pgvalet is silent, answers nonsense, or is down: the reload works as if there were no pgvalet, nothing is taken back,
# and one line in the log says why.
require_relative "fake_admin"
FAKE = FakeAdmin.new { nil }
ENV["PGVALET_ADMIN_URL"] = FAKE.url
require_relative "app"
include Support

worker = Worker.new("dispatcher")
worker.run { Job.connection && Job.create!(name: "first", round: 0) }
worker.asleep!
held = QueueRecord.connection_pool.connections.find { |conn| conn.owner == worker.thread }
Pgvalet.send(:wire, held).last or abort "the session has no id: does it go through pgvalet?"

all = ->(body, outcome) { JSON.generate(id: "1", leases: body["sessions"].map { |claim| { session: claim["id"], outcome: outcome } }) }
faults = {
  "silent" => ->(*) {},
  "not HTTP" => ->(*) { "\x00\xff\xfe garbage" * 100 },
  "an empty answer" => ->(*) { "" },
  "half an answer" => ->(*) { "HTTP/1.1 200 OK\r\nContent-Le" },
  "not JSON" => ->(*) { FakeAdmin.ok("<html>\xff</html>") },
  "JSON of another shape" => ->(*) { FakeAdmin.ok("[1, 2]") },
  "no leases" => ->(*) { FakeAdmin.ok("{}") },
  "leases that are none" => ->(*) { FakeAdmin.ok('{"leases": [17, null]}') },
  "an error" => ->(*) { "HTTP/1.1 503 Service Unavailable\r\n\r\n{}" },
  "other sessions" => ->(*) { FakeAdmin.ok('{"leases": [{"session": 1, "outcome": "returned"}]}') },
  "an unheard-of outcome" => ->(_, _, body) { FakeAdmin.ok(all[body, "evaporated"]) },
}
faults.each do |name, fault|
  FAKE.answer(&fault)
  before = App.log.size
  took = reload
  check format("%s: the reload works (%.0f ms)", name, took * 1000), took < App::TIMEOUT * 2, took
  check "#{name}: one line says so", App.log.size == before + 1, App.log
  check "#{name}: nothing is taken back", held.owner == worker.thread && QueueRecord.connection_pool.connections.include?(held)
end
FAKE.close
before = App.log.size
took = reload
check format("down: the reload works (%.0f ms)", took * 1000), took < App::TIMEOUT * 2, took
check "down: one line says so", App.log.size == before + 1 && App.log.last.include?("ECONNREFUSED"), App.log.last
check "the owner never noticed", worker.run { Job.connection.equal?(held) && Job.count == 1 }
