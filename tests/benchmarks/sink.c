/* An S3 server that discards what it is sent, so that the client is what a benchmark measures.
 *
 * Bodies are dropped in the kernel (MSG_TRUNC). It remembers the name and the size of every object,
 * and the content of those below ".syncd/", which are small: enough to list, to head, and to refuse
 * If-None-Match there. ETags are no MD5 on purpose: no client compares them with its own.
 * GET of any other object gives zeros.  Build: gcc -O2 -pthread -o sink sink.c   Run: ./sink PORT
 * SIGUSR1 prints and clears the counts of requests and bytes.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEAD_LIMIT = 65536, BODY_LIMIT = 8 << 20, ZEROS = 1 << 20, BUCKETS = 1 << 14 };

struct object {
    struct object *next;
    char *key;
    long size, parts, whole; /* parts: bytes of an upload under way */
    char *body;
};

static struct object *table[BUCKETS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_long puts_, posts, gets, heads, bytes, uploads;
static char *zeros;

static struct object *find(const char *key, int make) {
    unsigned hash = 5381;
    for (const char *p = key; *p; p++) hash = hash * 33 + (unsigned char)*p;
    struct object **place = &table[hash % BUCKETS];
    for (struct object *o = *place; o; o = o->next)
        if (!strcmp(o->key, key)) return o;
    if (!make) return NULL;
    struct object *fresh = calloc(1, sizeof *fresh);
    fresh->key = strdup(key);
    fresh->next = *place;
    *place = fresh;
    return fresh;
}

static struct object *upload_of(const char *query) {
    char name[64];
    const char *at = strstr(query, "uploadId=");
    snprintf(name, sizeof name, "/upload/%.*s", (int)strcspn(at + 9, "& "), at + 9);
    return find(name, 1);
}

static int answer(int fd, const char *data, size_t count) {
    while (count) {
        ssize_t sent = send(fd, data, count, MSG_NOSIGNAL);
        if (sent <= 0) return -1;
        data += sent;
        count -= sent;
    }
    return 0;
}

static int header(const char *head, const char *name, char *out, size_t room) {
    size_t length = strlen(name);
    for (const char *p = head; (p = strstr(p, "\r\n"));) {
        p += 2;
        if (strncasecmp(p, name, length) || p[length] != ':') continue;
        p += length + 1;
        while (*p == ' ') p++;
        size_t count = strcspn(p, "\r");
        if (count >= room) count = room - 1;
        memcpy(out, p, count);
        out[count] = 0;
        return 1;
    }
    *out = 0;
    return 0;
}

static int reply(int fd, const char *status, const char *extra, const char *body, long length) {
    char head[1024];
    int count = snprintf(head, sizeof head, "HTTP/1.1 %s\r\n%sContent-Length: %ld\r\n\r\n", status,
                         extra, length);
    return answer(fd, head, count) || (body && answer(fd, body, length));
}

static void unescape(char *text) {
    char *out = text;
    for (; *text; text++) {
        unsigned code;
        if (*text == '%' && sscanf(text + 1, "%2x", &code) == 1) *out++ = code, text += 2;
        else *out++ = *text;
    }
    *out = 0;
}

static int listing(int fd, const char *query) {
    char prefix[2048] = "";
    const char *at = strstr(query, "prefix=");
    if (at) snprintf(prefix, sizeof prefix, "%.*s", (int)strcspn(at + 7, "& "), at + 7);
    unescape(prefix);
    char *text;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    fputs("<?xml version=\"1.0\"?><ListBucketResult "
          "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><IsTruncated>false</IsTruncated>", out);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < BUCKETS; i++)
        for (struct object *o = table[i]; o; o = o->next)
            if (o->whole && !strncmp(o->key, prefix, strlen(prefix)))
                fprintf(out, "<Contents><Key>%s</Key><LastModified>2026-11-23T10:00:00.000Z"
                        "</LastModified><ETag>&quot;sink-1&quot;</ETag><Size>%ld</Size></Contents>",
                        o->key, o->size);
    pthread_mutex_unlock(&lock);
    fputs("</ListBucketResult>", out);
    fclose(out);
    int failed = reply(fd, "200 OK", "Content-Type: application/xml\r\n", text, size);
    free(text);
    return failed;
}

/* Of uploads under way it knows nothing: each ends with a kill or with its object. */
static int no_uploads(int fd) {
    static const char text[] =
        "<?xml version=\"1.0\"?><ListMultipartUploadsResult "
        "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><IsTruncated>false</IsTruncated>"
        "</ListMultipartUploadsResult>";
    return reply(fd, "200 OK", "Content-Type: application/xml\r\n", text, sizeof text - 1);
}

static int put(int fd, const char *head, const char *key, const char *query, long size, char *body) {
    char sum[128], extra[512] = "", line[300], value[64];
    static const char *names[] = {"x-amz-checksum-crc32", "x-amz-checksum-crc32c",
                                  "x-amz-checksum-crc64nvme", "x-amz-checksum-sha256"};
    puts_++;
    snprintf(extra, sizeof extra, "ETag: \"sink-%ld\"\r\n", size);
    for (int i = 0; i < 4; i++)
        if (header(head, names[i], sum, sizeof sum)) {
            snprintf(line, sizeof line, "%s: %s\r\n", names[i], sum);
            strncat(extra, line, sizeof extra - strlen(extra) - 1);
        }
    pthread_mutex_lock(&lock);
    struct object *o = find(key, 1);
    int refused = o->whole && header(head, "if-none-match", value, sizeof value) &&
                  strstr(key, "/.syncd/");
    if (strstr(query, "uploadId=")) upload_of(query)->parts += size;
    else if (!refused) {
        o->size = size;
        o->whole = 1;
        free(o->body);
        o->body = body;
        body = NULL;
    }
    pthread_mutex_unlock(&lock);
    free(body);
    if (refused) return reply(fd, "412 Precondition Failed", "", NULL, 0);
    return reply(fd, "200 OK", extra, NULL, 0);
}

static int post(int fd, const char *head, const char *key, const char *query) {
    char text[3000], value[64];
    posts++;
    if (strstr(query, "uploadId=")) {
        pthread_mutex_lock(&lock);
        struct object *o = find(key, 1);
        int refused = o->whole && header(head, "if-none-match", value, sizeof value) &&
                      strstr(key, "/.syncd/");
        if (!refused) o->size = upload_of(query)->parts, o->whole = 1;
        pthread_mutex_unlock(&lock);
        if (refused) return reply(fd, "412 Precondition Failed", "", NULL, 0);
        snprintf(text, sizeof text, "<?xml version=\"1.0\"?><CompleteMultipartUploadResult "
                 "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Location>l</Location><Bucket>b"
                 "</Bucket><Key>k</Key><ETag>&quot;sink-parts-1&quot;</ETag>"
                 "</CompleteMultipartUploadResult>");
    } else
        snprintf(text, sizeof text, "<?xml version=\"1.0\"?><InitiateMultipartUploadResult "
                 "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>b</Bucket><Key>k</Key>"
                 "<UploadId>u%ld</UploadId></InitiateMultipartUploadResult>", ++uploads);
    return reply(fd, "200 OK", "Content-Type: application/xml\r\n", text, strlen(text));
}

static int get(int fd, const char *head, const char *key, int only_head) {
    char range[128], extra[512], more[128] = "";
    *(only_head ? &heads : &gets) += 1;
    pthread_mutex_lock(&lock);
    struct object *o = find(key, 0);
    long size = o && o->whole ? o->size : -1;
    const char *body = o ? o->body : NULL;
    pthread_mutex_unlock(&lock);
    if (size < 0) return reply(fd, "404 Not Found", "", NULL, 0);
    long from = 0, to = size - 1;
    const char *status = "200 OK";
    if (header(head, "range", range, sizeof range) && size) {
        long end = -1;
        sscanf(range, "bytes=%ld-%ld", &from, &end);
        if (end >= 0 && end < to) to = end;
        status = "206 Partial Content";
        snprintf(more, sizeof more, "Content-Range: bytes %ld-%ld/%ld\r\n", from, to, size);
    }
    const char *tag = body ? "sink-1" : "sink-parts-1";
    snprintf(extra, sizeof extra, "ETag: \"%s\"\r\nLast-Modified: Mon, 23 Nov 2026 10:00:00 GMT"
             "\r\n%s", tag, more);
    if (reply(fd, status, extra, NULL, to - from + 1)) return -1;
    if (only_head) return 0;
    if (body) return answer(fd, body + from, to - from + 1);
    for (long left = to - from + 1; left > 0;) {
        size_t count = left > ZEROS ? ZEROS : left;
        if (answer(fd, zeros, count)) return -1;
        left -= count;
    }
    return 0;
}

static char *take_body(int fd, char *buffer, size_t *have, long length, int keep) {
    char *body = keep && length <= BODY_LIMIT ? malloc(length + 1) : NULL;
    long done = (long)*have < length ? (long)*have : length;
    if (body) memcpy(body, buffer, done);
    memmove(buffer, buffer + done, *have - done);
    *have -= done;
    bytes += length;
    while (done < length) {
        ssize_t got = body ? recv(fd, body + done, length - done, 0)
                           : recv(fd, NULL, length - done, MSG_TRUNC);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) { free(body); return (char *)-1; }
        done += got;
    }
    return body;
}

static int skip_chunks(int fd, char *buffer, size_t *have) {
    for (;;) { /* aws-chunked over http/1.1: up to the last chunk */
        char *end = memmem(buffer, *have, "0\r\n\r\n", 5);
        if (end) { *have = 0; return 0; }
        if (*have > 5) { memmove(buffer, buffer + *have - 5, 5); *have = 5; }
        ssize_t got = recv(fd, buffer + *have, HEAD_LIMIT - 10, 0);
        if (got <= 0) return -1;
        *have += got;
        bytes += got;
    }
}

static void *serve(void *argument) {
    int fd = (int)(long)argument, one = 1, failed = 0;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    char *buffer = malloc(2 * HEAD_LIMIT), value[256];
    size_t have = 0;
    while (!failed) {
        char *end;
        while (!(end = memmem(buffer, have, "\r\n\r\n", 4))) {
            ssize_t got = have < HEAD_LIMIT ? recv(fd, buffer + have, HEAD_LIMIT - have, 0) : -1;
            if (got <= 0) goto done;
            have += got;
        }
        size_t length = end + 4 - buffer;
        char *head = strndup(buffer, length), method[8] = "", url[4096] = "";
        memmove(buffer, buffer + length, have - length);
        have -= length;
        sscanf(head, "%7s %4095s", method, url);
        char *query = strchr(url, '?');
        if (query) *query++ = 0;
        else query = "";
        unescape(url);
        char *key = strchr(url + 1, '/');
        key = key ? key + 1 : url + strlen(url);
        long count = header(head, "content-length", value, sizeof value) ? atol(value) : 0;
        int chunked = header(head, "transfer-encoding", value, sizeof value);
        if (header(head, "expect", value, sizeof value))
            failed = answer(fd, "HTTP/1.1 100 Continue\r\n\r\n", 25);
        char *body = NULL;
        if (chunked) failed |= skip_chunks(fd, buffer, &have);
        else body = take_body(fd, buffer, &have, count, !!strstr(key, ".syncd/"));
        if (failed || body == (char *)-1) failed = 1;
        else if (!strcmp(method, "PUT")) failed = put(fd, head, key, query, count, body);
        else if (!strcmp(method, "POST")) free(body), failed = post(fd, head, key, query);
        else if (!strcmp(method, "DELETE")) {
            pthread_mutex_lock(&lock);
            struct object *o = find(key, 0);
            if (o && !strstr(query, "uploadId=")) o->whole = 0;
            pthread_mutex_unlock(&lock);
            failed = answer(fd, "HTTP/1.1 204 No Content\r\n\r\n", 27);
        } else if (!strcmp(method, "GET") && !*key && strstr(query, "uploads") &&
                 !strstr(query, "list-type"))
            failed = no_uploads(fd);
        else if (!strcmp(method, "GET") && !*key) failed = listing(fd, query);
        else if (strstr(query, "uploadId=")) /* list parts: none is left */
            failed = reply(fd, "404 Not Found", "", NULL, 0);
        else failed = get(fd, head, key, !strcmp(method, "HEAD"));
        free(head);
    }
done:
    close(fd);
    free(buffer);
    return NULL;
}

static void tell(int number) {
    (void)number;
    fprintf(stderr, "put %ld post %ld get %ld head %ld bytes %ld\n", puts_, posts, gets, heads, bytes);
    puts_ = posts = gets = heads = bytes = 0;
}

int main(int count, char **words) {
    if (count != 2) return fprintf(stderr, "usage: sink PORT\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGUSR1, tell);
    zeros = calloc(1, ZEROS);
    int server = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1])),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(server, (void *)&here, sizeof here) || listen(server, 1024)) return perror("bind"), 1;
    for (;;) {
        int fd = accept(server, NULL, NULL);
        pthread_t thread;
        pthread_attr_t small;
        if (fd < 0) continue;
        pthread_attr_init(&small);
        pthread_attr_setstacksize(&small, 256 * 1024);
        pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
        if (pthread_create(&thread, &small, serve, (void *)(long)fd)) close(fd);
    }
}
