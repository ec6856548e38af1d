# frozen_string_literal: true

# Logs in by each method with the gem pg.

require 'pg'

def connect(user, password)
  connection = PG.connect(user: user, password: password)
  connection.exec('SELECT session_user').getvalue(0, 0)
ensure
  connection&.close
end

%w[by_scram by_md5 by_password by_trust].each do |user|
  raise user unless connect(user, 'pencil') == user
end

[%w[by_scram eraser], %w[by_md5 eraser], %w[by_password eraser], %w[late pencil], %w[mallory pencil]].each do |user, password|
  connect(user, password)
  raise "#{user} got in"
rescue PG::ConnectionBad => e
  raise unless e.message.include?(%(password authentication failed for user "#{user}"))
end

puts 'all well'
