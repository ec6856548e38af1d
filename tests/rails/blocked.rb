# frozen_string_literal: true

# A thread inside Rails' executor that waits holds the reloader up ahead of every hook: it is named in the log.
require_relative "app"
include Support

gate = Queue.new
worker = Worker.new("wrapped")
worker.start do
  Rails.application.executor.wrap { ActiveSupport::Dependencies.interlock.permit_concurrent_loads { gate.pop } }
end
eventually("it waits inside the executor") { gate.num_waiting == 1 }
reloading = Thread.new { reload }
eventually("the log names it") { App.log.grep(/wrapped at \S*blocked\.rb:\d+/).any? }
puts App.log.last
check "the reload still waits", reloading.alive?
gate << :go
reloading.join(DEADLINE) or abort "the reload hangs"
worker.result
check "the reload goes on once it left", true
