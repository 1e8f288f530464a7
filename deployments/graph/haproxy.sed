# Edits of the HAProxy configuration that Ray renders (sed -E), for haproxy-loopback.sh.

# While it splices a request body HAProxy does not notice that the client has left, and the call
# would continue.
s/^( *)(option splice-re(quest|sponse))$/\1no \2/

# HAProxy's own answers, where no replica answers, come in the product's envelope and as retryable.
# Ray makes them a bare 500.
s/^( *)errorfile (502|503|504) .*$/\1http-error status \2 content-type application\/json hdr Retry-After 1 lf-string '{"error":{"type":"unavailable","message":"this part of the graph does not answer: retry shortly","retryable":true,"request_id":"%[req.hdr(x-request-id),json]"}}'/

# Every request has an id, so that HAProxy's own answers name it.
s/^( *)# Routes endpoint$/\1http-request set-header X-Request-Id %[uuid()] unless { req.hdr(X-Request-Id) -m found }/

# Serve lists its applications there, to anybody.
s/^( *)http-request return status .* if routes$/\1http-request return status 404 content-type application\/json hdr X-Request-Id %[req.hdr(x-request-id)] lf-string '{"error":{"type":"not_found","message":"no such route: see \/docs","retryable":false,"request_id":"%[req.hdr(x-request-id),json]"}}' if routes/

# No application matches a path: the graph is still starting, because the one at `/` matches all.
s/^( *)http-request return status 404 content-type text\/plain lf-string .*$/\1http-request return status 503 content-type application\/json hdr Retry-After 1 hdr X-Request-Id %[req.hdr(x-request-id)] lf-string '{"error":{"type":"unavailable","message":"the graph is starting: retry shortly","retryable":true,"request_id":"%[req.hdr(x-request-id),json]"}}'/

# The head of a request has a deadline. Its 408 is HAProxy's own and cannot be changed, because there
# is no request yet. The replica bounds the body, because it counts the bytes.
s/^( *)timeout client .*$/&\
\1timeout http-request 10s/
