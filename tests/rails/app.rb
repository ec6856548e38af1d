# frozen_string_literal: true

# A throwaway Rails application with Rails' real reloader: one model that is reloaded, and two pools that are not.
# APP_DATABASE_URL says where its database is, CHECKOUT_TIMEOUT how long its pools wait: 1 s, or 10
# where the glue is, so that a reload that waits is told apart from a machine that is busy. A scenario may have more
# databases (APP_MORE_DATABASES, JSON), and fibers that own connections (APP_ISOLATION).
require "fileutils"
require "json"
require "tmpdir"
require "rails"
require "active_record/railtie"
require_relative "support"

module App
  ROOT = Dir.mktmpdir("pgvalet-rails-")
  at_exit { FileUtils.rm_rf(ROOT) }
  TIMEOUT = ENV.fetch("CHECKOUT_TIMEOUT") { ENV["PGVALET_ADMIN_URL"].to_s.empty? ? "1" : "10" }.to_f # s
  GLUE = File.expand_path("../../deploy/rails/pgvalet.rb", __dir__)

  def self.write(path, text)
    file = File.join(ROOT, path)
    FileUtils.mkdir_p(File.dirname(file))
    File.write(file, text)
    file
  end

  # The next version of the model. Its time moves as its content does, however coarse the file system's clock is.
  def self.touch
    @version = (@version || 0) + 1
    file = write("app/models/item.rb", "class Item < ActiveRecord::Base\n  VERSION = #{@version}\nend\n")
    File.utime(0, Time.now - 1_000_000 + @version, file)
    @version
  end

  database = { url: ENV.fetch("APP_DATABASE_URL"), pool: 12, checkout_timeout: TIMEOUT }
  more = JSON.parse(ENV.fetch("APP_MORE_DATABASES", "{}")).transform_values { |other| { **database, **other.transform_keys(&:to_sym) } }
  write("config/database.yml", JSON.generate(development: { primary: database, queue: database, **more }))
  write("config/initializers/pgvalet.rb", "load #{GLUE.dump}\n")
  write("lib/tasks/pgvalet.rake", "load #{GLUE.sub(/rb\z/, "rake").dump}\n")
  FileUtils.mkdir_p(File.join(ROOT, "log"))
  touch

  class Application < Rails::Application
    config.root = ROOT
    config.load_defaults "#{Rails::VERSION::MAJOR}.#{Rails::VERSION::MINOR}"
    config.active_support.isolation_level = ENV["APP_ISOLATION"].to_sym if ENV["APP_ISOLATION"] # 7.0
    config.cache_classes = false
    config.eager_load = false
    config.secret_key_base = "x"
    config.logger = ActiveSupport::Logger.new(File.join(ROOT, "log/test.log"))
    config.log_level = :info
  end

  def self.log
    File.readlines(File.join(ROOT, "log/test.log")).grep(/\[pgvalet\]/)
  end
end

ENV["RAILS_ENV"] = "development"
Rails.application.initialize!

class QueueRecord < ActiveRecord::Base # the background thread's own pool
  self.abstract_class = true
  connects_to database: { writing: :queue }
end

class Job < QueueRecord
end

class Note < ActiveRecord::Base # in the pool of the requests
end

ActiveRecord::Schema.verbose = false
ActiveRecord::Schema.define do
  %i[items jobs notes].each do |table|
    create_table(table, force: true) do |t|
      t.string :name
      t.integer :round
    end
  end
end
ActiveRecord::Base.connection_handler.clear_active_connections!
