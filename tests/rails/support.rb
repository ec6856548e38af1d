# frozen_string_literal: true

# What the Rails scenarios share: saying what holds, waiting for events, a thread that can be parked and woken.
require "json"
require "net/http"
require "timeout"

module Support
  DEADLINE = 30 # s: how long anything may take before a scenario calls it hung

  module_function

  def check(what, holds, seen = nil)
    abort "not so: #{what}#{", but #{seen.inspect}" unless seen.nil?}" unless holds
    puts "ok: #{what}"
  end

  def now
    Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end

  # The one place where the scenarios wait by the clock.
  def eventually(what)
    deadline = now + DEADLINE
    until (value = yield)
      abort "not within #{DEADLINE} s: #{what}" if now > deadline
      sleep 0.002
    end
    value
  end

  # What pgvalet's admin API at `url` answers to GET.
  def pgvalet(path, url = Pgvalet::ADMIN)
    JSON.parse(Net::HTTP.get(URI("#{url}#{path}")))
  end

  def timings(what, seconds)
    ms = seconds.map { |value| value * 1000 }.sort
    puts format("%s: %d reloads, %.1f ms at least, %.1f ms median, %.1f ms at most", what, ms.size, ms[0], ms[ms.size / 2], ms[-1])
    [ms[ms.size / 2], ms[-1]]
  end

  # Rewrites the reloadable model, so that the reload is a real one, and times what the next request would wait.
  def reload
    version = App.touch
    started = now
    Rails.application.reloader.wrap { Item::VERSION == version or abort "Rails did not reload its code" }
    now - started
  end

  # The same, answered by pgvalet. A machine that is busy with something else may be late for the glue's limits: a reload
  # then goes on without pgvalet, and says so, and the next has its chance.
  def answered_reload
    eventually("pgvalet answers a reload") do
      before = App.log.size
      took = reload
      took if App.log.drop(before).grep(/of no use/).empty?
    end
  end

  # A thread that runs blocks of work, and is asleep on a queue between them.
  class Worker
    attr_reader :thread

    def initialize(name)
      @work, @results = Queue.new, Queue.new
      @thread = Thread.new do
        Thread.current.name = name
        while (work = @work.pop)
          @results << begin
            work.call
          rescue StandardError => e
            e
          end
        end
      end
    end

    def start(&work)
      @work << work
      self
    end

    def result
      value = Timeout.timeout(DEADLINE) { @results.pop }
      value.is_a?(Exception) ? raise(value) : value
    end

    def run(&work)
      start(&work).result
    end

    def asleep!
      Support.eventually("#{@thread.name} sleeps") { @thread.status == "sleep" }
    end
  end
end
