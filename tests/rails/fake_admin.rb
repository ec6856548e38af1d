# frozen_string_literal: true

require "json"
require "socket"

# Stands for pgvalet's admin listener where that is down, silent, or answers nonsense.
class FakeAdmin
  attr_reader :port, :requests

  def initialize(&answer)
    @requests, @open = [], []
    @answer = answer
    @server = TCPServer.new("127.0.0.1", 0)
    @port = @server.addr[1]
    Thread.new { loop { serve(@server.accept) } }.report_on_exception = false
  end

  def url
    "http://127.0.0.1:#{port}"
  end

  # Gives the bytes of an answer for a request (verb, path, body), or nil: then it stays silent.
  def answer(&block)
    @answer = block
  end

  # Certifies everything.
  def self.certify(_verb, _path, body)
    leases = body["sessions"].map { |claim| { session: claim["id"], outcome: "returned", reason: nil, last_statement: "INSERT" } }
    ok(JSON.generate(id: "1", leases: leases))
  end

  def self.ok(body)
    "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n#{body}"
  end

  def close
    @server.close
  end

  private

  def serve(socket)
    verb, path = socket.gets.split
    length = 0
    until (line = socket.gets.chomp).empty?
      length = line[/\Acontent-length: *(\d+)/i, 1].to_i if line.match?(/\Acontent-length/i)
    end
    body = JSON.parse(socket.read(length))
    @requests << [verb, path, body]
    bytes = @answer.call(verb, path, body)
    return @open << socket if bytes.nil?

    socket.write(bytes)
    socket.close
  rescue SystemCallError, IOError
    nil
  end
end
