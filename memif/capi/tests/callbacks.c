/* What an application may do when it is called back, and while it is: use a queue until it has been told
 * of the end, delete the interface, make it anew, delete the socket. And what it is told for wrong calls. */
#include "check.h"
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>

struct end {
	memif_socket_handle_t sock;
	memif_conn_handle_t conn;
	int ups, downs;
	/* What to do in on_connect and on_disconnect. */
	void (*on_up)(struct end *end);
	void (*on_down)(struct end *end);
	pthread_t thread;
	int stop;
};

static int up(memif_conn_handle_t conn, void *ctx)
{
	struct end *end = ctx;
	end->ups++;
	OK(memif_refill_queue(conn, 0, -1, 0));
	if (end->on_up)
		end->on_up(end);
	return 0;
}

static int down(memif_conn_handle_t conn, void *ctx)
{
	struct end *end = ctx;
	(void)conn;
	end->downs++;
	if (end->on_down)
		end->on_down(end);
	return 0;
}

static void make_socket(struct end *end, const char *name)
{
	memif_socket_args_t sock = socket_args(name);
	OK(memif_create_socket(&end->sock, &sock, end));
}

static int make(struct end *end, int is_master)
{
	memif_conn_args_t args = {.socket = end->sock, .is_master = is_master};
	int err = memif_create(&end->conn, &args, up, down, NULL, end);
	if (err == MEMIF_ERR_SUCCESS)
		CHECK(args.buffer_size == 2048 && args.log2_ring_size == 10 && args.num_s2m_rings == 1);
	return err;
}

static void connected(struct end *server, struct end *client, const char *name)
{
	make_socket(server, name);
	make_socket(client, name);
	OK(make(server, 1));
	OK(make(client, 0));
	WAIT(server->ups && client->ups, {
		OK(memif_poll_event(server->sock, 0));
		OK(memif_poll_event(client->sock, 0));
	});
}

static void *receive(void *ctx)
{
	struct end *end = ctx;
	memif_buffer_t buf;
	uint16_t n;
	while (!__atomic_load_n(&end->stop, __ATOMIC_ACQUIRE)) {
		CHECK(memif_rx_burst(end->conn, 0, &buf, 1, &n) == MEMIF_ERR_SUCCESS);
		CHECK(memif_refill_queue(end->conn, 0, n, 0) == MEMIF_ERR_SUCCESS);
	}
	return NULL;
}

static void stop_thread(struct end *end)
{
	/* The thread has a moment for the mistake that is looked for. */
	usleep(20000);
	__atomic_store_n(&end->stop, 1, __ATOMIC_RELEASE);
	CHECK(pthread_join(end->thread, NULL) == 0);
}

/* A thread may use its queue until on_disconnect returns. */
static void threads(const char *name, int which)
{
	struct end server = {0}, client = {0}, *leaver = &client, *stayer = &server;
	connected(&server, &client, name);
	if (which)
		leaver = &server, stayer = &client;
	for (int i = 0; i < 2; i++) {
		struct end *end = i ? leaver : stayer;
		end->on_down = stop_thread;
		CHECK(pthread_create(&end->thread, NULL, receive, end) == 0);
	}
	OK(memif_delete(&leaver->conn));
	WAIT(stayer->downs, OK(memif_poll_event(stayer->sock, 10)));
	stayer->on_down = NULL;
	OK(memif_delete(&stayer->conn));
	/* As with libmemif, deleting tells also those who were told before. */
	CHECK(leaver->downs == 1 && stayer->downs == 2);
	OK(memif_delete_socket(&server.sock));
	OK(memif_delete_socket(&client.sock));
}

static void delete_all(struct end *end)
{
	memif_conn_handle_t same = end->conn;
	CHECK(memif_request_connection(end->conn) == MEMIF_ERR_ALRCONN);
	end->on_down = NULL;
	OK(memif_delete(&end->conn));
	CHECK(same && !end->conn && memif_delete(&end->conn) == MEMIF_ERR_NOCONN);
	OK(memif_delete_socket(&end->sock));
}

/* The peer leaves, and the application clears everything away when it hears of it. */
static void deletes_when_told(const char *name)
{
	struct end server = {0}, client = {0};
	connected(&server, &client, name);
	client.on_down = delete_all;
	OK(memif_delete(&server.conn));
	WAIT(!client.sock, OK(memif_poll_event(client.sock, 10)));
	CHECK(client.downs == 1);
	OK(memif_delete_socket(&server.sock));
}

static void delete_twice(struct end *end)
{
	memif_conn_handle_t same = end->conn;
	CHECK(memif_delete(&same) == MEMIF_ERR_NOCONN);
	CHECK(memif_delete_socket(&end->sock) == MEMIF_ERR_INVAL_ARG);
}

static void make_again(struct end *end)
{
	end->on_down = NULL;
	OK(memif_delete(&end->conn));
	OK(make(end, 0));
}

static void delete_at_once(struct end *end)
{
	end->on_up = NULL;
	OK(memif_delete(&end->conn));
}

static void makes_anew_when_told(const char *name)
{
	struct end server = {0}, client = {0};
	connected(&server, &client, name);
	client.on_down = make_again;
	server.on_down = delete_twice;
	OK(memif_delete(&server.conn));
	server.on_down = NULL;
	CHECK(server.downs == 1);
	/* Nobody listens any more, which is no error. */
	WAIT(client.downs == 1, OK(memif_poll_event(client.sock, 10)));
	CHECK(client.conn);
	OK(make(&server, 1));
	client.on_up = delete_at_once;
	OK(memif_request_connection(client.conn));
	WAIT(client.ups == 2, {
		OK(memif_poll_event(server.sock, 0));
		OK(memif_poll_event(client.sock, 0));
	});
	/* Once by make_again, whose interface was being told already, once by delete_at_once. */
	CHECK(!client.conn && client.downs == 2);
	WAIT(server.downs == 2, OK(memif_poll_event(server.sock, 10)));
	OK(memif_delete(&server.conn));
	OK(memif_delete_socket(&server.sock));
	OK(memif_delete_socket(&client.sock));
}

/* An application that waits for on_disconnect after memif_delete hears it in any case. */
static void never_connected(const char *name)
{
	struct end client = {0};
	make_socket(&client, name);
	OK(make(&client, 0));
	OK(memif_delete(&client.conn));
	CHECK(client.downs == 1 && client.ups == 0);
	OK(memif_delete_socket(&client.sock));
}

static void wrong_calls(const char *name)
{
	struct end server = {0}, client = {0};
	memif_conn_args_t args = {.log2_ring_size = 16};
	memif_conn_handle_t fresh = NULL;
	connected(&server, &client, name);
	CHECK(make(&client, 0) == MEMIF_ERR_CONN);
	CHECK(memif_request_connection(client.conn) == MEMIF_ERR_ALRCONN);
	CHECK(memif_request_connection(server.conn) == MEMIF_ERR_ALRCONN);
	args.socket = client.sock;
	args.interface_id = 1;
	CHECK(memif_create(&fresh, &args, up, down, NULL, NULL) == MEMIF_ERR_MAX_RING && !fresh);
	OK(memif_delete(&client.conn));
	OK(memif_delete(&server.conn));
	OK(memif_delete_socket(&server.sock));
	OK(memif_delete_socket(&client.sock));
	CHECK(memif_delete_socket(&client.sock) == MEMIF_ERR_INVAL_ARG);
	CHECK(memif_create_socket(NULL, NULL, NULL) == MEMIF_ERR_INVAL_ARG);
	CHECK(memif_poll_event(NULL, 0) == MEMIF_ERR_INVAL_ARG);
	CHECK(memif_control_fd_handler(NULL, MEMIF_FD_EVENT_READ) == MEMIF_ERR_INVAL_ARG);
	CHECK(memif_request_connection(NULL) == MEMIF_ERR_NOCONN);
}

static void on_alarm(int signal)
{
	(void)signal;
}

/* A loop that goes on while all is well is left by a signal. */
static void signals_and_timeouts(const char *name)
{
	struct end end = {0};
	struct itimerval soon = {.it_value.tv_usec = 30000};
	double start = seconds();
	make_socket(&end, name);
	OK(memif_poll_event(end.sock, 50));
	CHECK(seconds() - start >= 0.05);
	signal(SIGALRM, on_alarm);
	CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
	CHECK(memif_poll_event(end.sock, 10000) == MEMIF_ERR_SYSCALL);
	CHECK(seconds() - start < 5);
	/* Cancelled before it waits, and once only. */
	OK(memif_cancel_poll_event(end.sock));
	CHECK(memif_poll_event(end.sock, 10000) == MEMIF_ERR_POLL_CANCEL);
	OK(memif_poll_event(end.sock, 0));
	OK(memif_delete_socket(&end.sock));
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	threads(argv[1], 0);
	threads(argv[1], 1);
	deletes_when_told(argv[1]);
	makes_anew_when_told(argv[1]);
	never_connected(argv[1]);
	wrong_calls(argv[1]);
	signals_and_timeouts(argv[1]);
	puts("ok");
	return 0;
}
