/* A line to a server that is far away: each answer comes later, and each connection is only so fast.
 *
 * Together the connections are as fast as the machine, as they are to the store of a large provider.
 * Build: gcc -O2 -pthread -o far far.c   Run: ./far PORT SERVERS_PORT MILLISECONDS MEGABYTES_PER_SECOND
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ROOM = 128 << 10 };

static struct sockaddr_in server = {.sin_family = AF_INET};
static long delay, rate; /* nanoseconds, bytes per second */

struct line {
    int client, server;
    atomic_int asked, ends; /* asked: something has gone up since the last answer */
};

struct way {
    struct line *line;
    int up;
};

static long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void until(long when) {
    struct timespec t = {when / 1000000000L, when % 1000000000L};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static void *pass(void *argument) {
    struct way way = *(struct way *)argument;
    struct line *line = way.line;
    int from = way.up ? line->client : line->server, to = way.up ? line->server : line->client;
    char *room = malloc(ROOM);
    long free_at = 0;
    free(argument);
    for (ssize_t got; (got = recv(from, room, ROOM, 0)) > 0;) {
        long at = now();
        if (way.up) line->asked = 1;
        else if (atomic_exchange(&line->asked, 0)) at += delay;
        free_at = (free_at > at ? free_at : at) + got * 1000 / (rate / 1000000);
        until(free_at);
        for (ssize_t done = 0, sent; done < got; done += sent)
            if ((sent = send(to, room + done, got - done, MSG_NOSIGNAL)) <= 0) goto over;
    }
over:
    shutdown(to, way.up ? SHUT_WR : SHUT_RDWR);
    free(room);
    if (atomic_fetch_add(&line->ends, 1)) close(line->client), close(line->server), free(line);
    return NULL;
}

static int start(struct line *line, int up) {
    struct way *way = malloc(sizeof *way);
    pthread_attr_t small;
    pthread_t thread;
    *way = (struct way){line, up};
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 * 1024);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    return pthread_create(&thread, &small, pass, way);
}

int main(int count, char **words) {
    if (count != 5) return fprintf(stderr, "usage: far PORT SERVERS_PORT MILLISECONDS MB\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    server.sin_port = htons(atoi(words[2]));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    delay = atol(words[3]) * 1000000, rate = atol(words[4]) * 1000000;
    struct sockaddr_in here = server;
    here.sin_port = htons(atoi(words[1]));
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&here, sizeof here) || listen(listener, 1024)) return perror("bind"), 1;
    for (;;) {
        struct line *line = calloc(1, sizeof *line);
        line->client = accept(listener, NULL, NULL);
        line->server = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(line->client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(line->server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (line->client < 0 || connect(line->server, (void *)&server, sizeof server))
            close(line->client), close(line->server), free(line);
        else if (start(line, 1) || start(line, 0)) return perror("thread"), 1;
    }
}
