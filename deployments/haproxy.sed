# How the product's HAProxy differs from the configuration that Ray renders (sed -E).

# Spliced request bodies keep HAProxy from noticing that a client left while it waits for the answer: the call would go on.
s/^( *)(option splice-re(quest|sponse))$/\1no \2/

# What HAProxy answers by itself, because no replica does, in the product's envelope and as retryable; Ray makes it a bare 500.
s/^( *)errorfile (502|503|504) .*$/\1http-error status \2 content-type application\/json hdr Retry-After 1 lf-string '{"error":{"type":"unavailable","message":"this part of the graph does not answer: retry shortly","retryable":true,"request_id":"%[req.hdr(x-request-id),json]"}}'/
s/^( *)http-request return status 404 content-type text\/plain lf-string .*$/\1http-request return status 404 content-type application\/json lf-string '{"error":{"type":"not_found","message":"no such route: see \/docs","retryable":false,"request_id":"%[req.hdr(x-request-id),json]"}}'/
