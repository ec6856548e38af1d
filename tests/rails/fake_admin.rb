# frozen_string_literal: true

require "json"
require "socket"

# Stands for pgvalet's admin listener where that is down, silent, or answers nonsense.
class FakeAdmin
  attr_reader :url, :requests, :headers

  def initialize(unix: nil, &answer)
    @requests, @headers, @open = [], [], []
    @answer = answer
    @server = unix ? UNIXServer.new(unix) : TCPServer.new("127.0.0.1", 0)
    @url = unix ? "unix:#{unix}" : "http://127.0.0.1:#{@server.addr[1]}"
    Thread.new { loop { serve(@server.accept) } }.report_on_exception = false
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
    headers = {}
    until (line = socket.gets.chomp).empty?
      name, value = line.split(": ", 2)
      headers[name.downcase] = value
    end
    text = socket.read(headers["content-length"].to_i)
    body = JSON.parse(text) unless text.empty?
    @headers << headers
    @requests << [verb, path, body]
    bytes = @answer.call(verb, path, body)
    return @open << socket if bytes.nil?

    socket.write(bytes)
    socket.close
  rescue StandardError
    nil # the client went away: that is its right
  end
end
