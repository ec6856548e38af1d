# frozen_string_literal: true

# Who holds a parked lease on the app's databases, as pgvalet sees it (docs/rails.md). Drop it into lib/tasks, beside the glue.
namespace :pgvalet do
  leaks = lambda do
    abort "PGVALET_ADMIN_URL isn't set" if Pgvalet::ADMIN.empty?
    found = Pgvalet.leaks
    puts "pgvalet: nobody has parked" if found.empty?
    found.each do |leak|
      puts "#{leak["owner"]} (#{leak["evidence"]}) parked for #{leak["parked_for"]} at #{leak["where"] || "an unknown place"}, " \
           "after #{leak["last_statement"] || "no statement"}: #{leak["remedy"]}"
    end
    found.size
  rescue SystemCallError, IOError, Timeout::Error, RuntimeError, OpenSSL::SSL::SSLError => e
    $stderr.puts "pgvalet: no leak report: #{e.class}: #{e.message}"
    exit 3
  end

  desc "Prints who has parked with a connection: who, for how long, where, and after which statement"
  task(leaks: :environment) { leaks.call }

  desc "The same, and fails where anybody has"
  task(gate: :environment) { exit 1 if leaks.call.positive? }
end
