# How the product's HAProxy differs from the configuration that Ray renders (sed -E).

# Spliced request bodies keep HAProxy from noticing that a client left while it waits for the answer: the call would go on.
s/^( *)(option splice-re(quest|sponse))$/\1no \2/

# What HAProxy answers by itself, because no replica does, in the product's envelope and as retryable; Ray makes it a bare 500.
s/^( *)errorfile (502|503|504) .*$/\1http-error status \2 content-type application\/json hdr Retry-After 1 lf-string '{"error":{"type":"unavailable","message":"this part of the graph does not answer: retry shortly","retryable":true,"request_id":"%[req.hdr(x-request-id),json]"}}'/

# A request has an id before anybody answers it.
s/^( *)# Routes endpoint$/\1http-request set-header X-Request-Id %[uuid()] unless { req.hdr(X-Request-Id) -m found }/

# No application at all for a path: the one at `/` takes every path, so the graph is still starting.
s/^( *)http-request return status 404 content-type text\/plain lf-string .*$/\1http-request return status 503 content-type application\/json hdr Retry-After 1 hdr X-Request-Id %[req.hdr(x-request-id)] lf-string '{"error":{"type":"unavailable","message":"the graph is starting: retry shortly","retryable":true,"request_id":"%[req.hdr(x-request-id),json]"}}'/

# The head of a request has a deadline. HAProxy then sends its own 408, which cannot be changed, because there is no request yet.
# The replica bounds the body, because it counts the bytes.
s/^( *)timeout client .*$/&\
\1timeout http-request 10s/
