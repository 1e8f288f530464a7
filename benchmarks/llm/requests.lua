-- Load for wrk: POSTs a chat call whose body differs in every request. Arguments: run id, bytes of padding, model, agent.
-- Prints one line `RESULT {json}` at the end; latencies are in microseconds.

local threads = {}

function setup(thread)
  thread:set("thread_id", #threads)
  table.insert(threads, thread)
end

function init(args)
  run_id = args[1] or "run"
  head = '{"model":"' .. (args[3] or "bench") .. '","messages":[{"role":"system","content":"Ти — помічник."},{"role":"user","content":"Call '
  tail = " " .. string.rep("x", tonumber(args[2] or "0")) .. '"}],"max_tokens":64,"temperature":0,'
    .. '"metadata":{"agent_id":"' .. (args[4] or "agent:sofia") .. '","microdao_id":"' .. (args[5] or "microdao:7") .. '","channel_id":"channel:1"}}'
  counter = 0
  wrk.headers["Content-Type"] = "application/json"
end

function request()
  counter = counter + 1
  return wrk.format("POST", nil, nil, head .. run_id .. "-" .. thread_id .. "-" .. counter .. tail)
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
