-- wrk's script: places orders for one of ten products, and prints the result as one JSON object.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"

local number = 0

function request()
    number = number + 1
    return wrk.format(nil, "/v1/orders", nil,
        '{"customer_id":"c-1","items":[{"product_id":"SKU-' .. (number % 10) .. '","quantity":1}]}')
end

function done(summary, latency, requests)
    local errors = summary.errors
    local failed = errors.status + errors.connect + errors.read + errors.write + errors.timeout
    io.write(string.format('\n{"accepted": %d, "failed": %d, "p50_ms": %.3f, "p99_ms": %.3f}\n',
        summary.requests - errors.status, failed, latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
