# frozen_string_literal: true

# Several databases, roles and shards, behind two pgvalets whose sessions have the same ids, and one behind none: each
# pgvalet hears of its own, whatever role or shard they are of, and nothing that doesn't go through one is touched.
ENV["APP_MORE_DATABASES"] = <<~JSON
  { "replica": { "replica": true }, "two": {}, "two_replica": { "replica": true },
    "animals": { "url": "#{ENV.fetch("OTHER_DATABASE_URL")}", "pgvalet_admin": "#{ENV.fetch("OTHER_ADMIN_URL")}" },
    "audit": { "url": "#{ENV.fetch("DIRECT_DATABASE_URL")}" } }
JSON
require_relative "app"
include Support

class ShardedRecord < ActiveRecord::Base
  self.abstract_class = true
  connects_to shards: { default: { writing: :primary, reading: :replica }, two: { writing: :two, reading: :two_replica } }
end

class AnimalRecord < ActiveRecord::Base
  self.abstract_class = true
  connects_to database: { writing: :animals, reading: :animals }
end

class AuditRecord < ActiveRecord::Base
  self.abstract_class = true
  connects_to database: { writing: :audit }
end

pick = {
  "dispatcher" => -> { Job.connection },
  "reader" => -> { ShardedRecord.connected_to(role: :reading) { ShardedRecord.connection } },
  "second shard" => -> { ShardedRecord.connected_to(role: :writing, shard: :two) { ShardedRecord.connection } },
  "its reader" => -> { ShardedRecord.connected_to(role: :reading, shard: :two) { ShardedRecord.connection } },
  "animal" => -> { AnimalRecord.connection },
  "auditor" => -> { AuditRecord.connection },
}
workers = pick.keys.to_h { |name| [name, Worker.new(name)] }
held = pick.to_h { |name, connection| [name, workers[name].run { connection.call.tap { |conn| conn.execute("SELECT 1") } }] }
workers.each_value(&:asleep!)
check "each has a pool of its own", held.values.map(&:pool).uniq.size == held.size

answered_reload
puts App.log.join
record = ->(url) { pgvalet("/v1/reloads/#{pgvalet("/v1/reloads", url)["reloads"].first["id"]}", url) }
told = [Pgvalet::ADMIN, ENV["OTHER_ADMIN_URL"]].map { |url| record[url]["leases"] }
names = told.map { |leases| leases.map { |lease| lease["owner"][/(.*) \(Thread\)/, 1] }.compact.sort }
check "the first pgvalet heard of its own, of every role and shard", names[0] == ["dispatcher", "its reader", "reader", "second shard"], names[0]
check "the other one of its own", names[1] == ["animal"], names[1]
check "though both have a session of that id", told.flatten.map { |lease| lease["session"] }.tally.values.max == 2, told
held.each do |name, conn|
  check "#{name} was #{name == "auditor" ? "left" : "taken"}", conn.pool.connections.include?(conn) == (name == "auditor")
  check "#{name} goes on", workers[name].run { pick[name].call.select_value("SELECT 'mine'") } == "mine"
end
