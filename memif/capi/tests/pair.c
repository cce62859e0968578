/* A server and a client in one program, each with the library's own event loop: layout of the
 * structures, buffers both ways, chains, headroom, moving buffers between rings, details. */
#include "check.h"
#include <pthread.h>
#include <stddef.h>

_Static_assert(sizeof(memif_socket_args_t) == 208, "socket args");
_Static_assert(offsetof(memif_socket_args_t, app_name) == 108, "app_name");
_Static_assert(offsetof(memif_socket_args_t, connection_request_timer) == 144, "timer");
_Static_assert(offsetof(memif_socket_args_t, on_control_fd_update) == 176, "callback");
_Static_assert(offsetof(memif_socket_args_t, free) == 200, "free");
_Static_assert(sizeof(memif_conn_args_t) == 80, "conn args");
_Static_assert(offsetof(memif_conn_args_t, num_s2m_rings) == 32, "rings");
_Static_assert(offsetof(memif_conn_args_t, buffer_size) == 34, "buffer_size");
_Static_assert(offsetof(memif_conn_args_t, is_master) == 37, "is_master");
_Static_assert(offsetof(memif_conn_args_t, interface_id) == 40, "id");
_Static_assert(offsetof(memif_conn_args_t, interface_name) == 44, "name");
_Static_assert(sizeof(memif_buffer_t) == 32, "buffer");
_Static_assert(offsetof(memif_buffer_t, len) == 16, "len");
_Static_assert(offsetof(memif_buffer_t, flags) == 20, "flags");
_Static_assert(offsetof(memif_buffer_t, data) == 24, "data");
_Static_assert(sizeof(memif_details_t) == 120, "details");
_Static_assert(sizeof(memif_region_details_t) == 32, "region");
_Static_assert(sizeof(memif_fd_event_t) == 16, "event");
_Static_assert(MEMIF_ERR_PRIVHDR == 39 && MEMIF_ERR_POLL_CANCEL == 37, "errors");

#define RING 64

struct end {
	memif_socket_handle_t sock;
	memif_conn_handle_t conn;
	int ups, downs;
};

static int up(memif_conn_handle_t conn, void *ctx)
{
	struct end *end = ctx;
	end->ups++;
	OK(memif_refill_queue(conn, 0, -1, 0));
	OK(memif_set_rx_mode(conn, MEMIF_RX_MODE_POLLING, 0));
	return 0;
}

static int down(memif_conn_handle_t conn, void *ctx)
{
	(void)conn;
	((struct end *)ctx)->downs++;
	return 0;
}

static void make(struct end *end, const char *name, int is_master)
{
	memif_socket_args_t sock = socket_args(name);
	memif_conn_args_t args = {0};
	OK(memif_create_socket(&end->sock, &sock, end));
	CHECK(strcmp(memif_get_socket_path(end->sock) + 1, name) == 0);
	CHECK(memif_get_socket_filename(end->sock) == memif_get_socket_path(end->sock));
	args.socket = end->sock;
	args.is_master = is_master;
	args.interface_id = 5;
	/* Frames of its own kind are the same to the library. */
	args.mode = MEMIF_INTERFACE_MODE_PUNT_INJECT;
	args.log2_ring_size = 6;
	snprintf((char *)args.secret, sizeof(args.secret), "hush");
	snprintf((char *)args.interface_name, 32, "%s", is_master ? "srv" : "cli");
	OK(memif_create(&end->conn, &args, up, down, NULL, end));
	CHECK(memif_get_socket_handle(end->conn) == end->sock);
	CHECK(memif_create(&(memif_conn_handle_t){0}, &args, up, down, NULL, end) == MEMIF_ERR_ID);
}

static void poll_both(struct end *a, struct end *b)
{
	OK(memif_poll_event(a->sock, 0));
	OK(memif_poll_event(b->sock, 0));
}

/* Sends one frame of `len` bytes in as many buffers as it takes. */
static void send_frame(struct end *end, uint16_t len, uint32_t seed)
{
	memif_buffer_t bufs[16];
	uint16_t n = 0, sent = 0;
	uint32_t at = 0;
	uint16_t want = (len + 2047) / 2048;
	OK(memif_buffer_alloc(end->conn, 0, bufs, 1, &n, len));
	CHECK(n == want);
	for (int i = 0; i < n; i++) {
		uint8_t whole[65536];
		fill(whole, len, seed);
		memcpy(bufs[i].data, whole + at, bufs[i].len);
		at += bufs[i].len;
		CHECK(!!(bufs[i].flags & MEMIF_BUFFER_FLAG_NEXT) == (i + 1 < n));
	}
	CHECK(at == len);
	OK(memif_tx_burst(end->conn, 0, bufs, n, &sent));
	CHECK(sent == n);
}

static void expect_frame(struct end *end, uint16_t len, uint32_t seed)
{
	memif_buffer_t bufs[16];
	uint16_t n = 0;
	uint32_t at = 0;
	OK(memif_rx_burst(end->conn, 0, bufs, 16, &n));
	CHECK(n == (len + 2047) / 2048);
	for (int i = 0; i < n; i++) {
		CHECK(same(bufs[i].data, bufs[i].len, seed, at));
		at += bufs[i].len;
		CHECK(!!(bufs[i].flags & MEMIF_BUFFER_FLAG_NEXT) == (i + 1 < n));
	}
	CHECK(at == len);
	OK(memif_refill_queue(end->conn, 0, n, 0));
}

static void frames(struct end *a, struct end *b)
{
	uint16_t sizes[] = {1, 64, 1500, 2048, 2049, 9000};
	for (uint32_t round = 0; round < 300; round++) {
		uint16_t len = sizes[round % 6];
		send_frame(a, len, round);
		expect_frame(b, len, round);
		send_frame(b, len, round + 1);
		expect_frame(a, len, round + 1);
	}
}

static void limits(struct end *a, struct end *b)
{
	memif_buffer_t bufs[RING + 1], in[RING];
	uint16_t n = 0, sent = 0, got = 0;
	CHECK(memif_buffer_alloc(a->conn, 0, bufs, RING + 1, &n, 64) == MEMIF_ERR_NOBUF_RING);
	CHECK(n == RING);
	CHECK(memif_tx_burst(a->conn, 0, bufs + 1, 1, &sent) == MEMIF_ERR_INVAL_ARG);
	CHECK(sent == 0);
	OK(memif_tx_burst(a->conn, 0, bufs, RING, &sent));
	CHECK(memif_tx_burst(a->conn, 0, bufs, 1, &sent) == MEMIF_ERR_INVAL_ARG);
	CHECK(memif_rx_burst(b->conn, 0, in, 10, &got) == MEMIF_ERR_NOBUF && got == 10);
	OK(memif_rx_burst(b->conn, 0, in, RING, &got));
	CHECK(got == RING - 10);
	OK(memif_refill_queue(b->conn, 0, RING, 0));
	CHECK(memif_rx_burst(a->conn, 1, in, 1, &got) == MEMIF_ERR_QID);
	CHECK(memif_buffer_alloc(a->conn, 9, bufs, 1, &n, 64) == MEMIF_ERR_QID);
	CHECK(memif_rx_burst(NULL, 0, in, 1, &got) == MEMIF_ERR_NOCONN);
	/* What was allocated and not sent can be allocated again. */
	OK(memif_buffer_alloc(a->conn, 0, bufs, 3, &n, 64));
	OK(memif_set_next_free_buffer(a->conn, 0, &bufs[1]));
	OK(memif_buffer_alloc(a->conn, 0, in, 1, &n, 64));
	CHECK(in[0].desc_index == bufs[1].desc_index && in[0].data == bufs[1].data);
	CHECK(memif_set_next_free_buffer(a->conn, 0, &bufs[2]) == MEMIF_ERR_INVAL_ARG);
	OK(memif_set_next_free_buffer(a->conn, 0, &bufs[0]));
	/* Frames are counted, not buffers; one for which the ring has not room enough gets none. */
	OK(memif_buffer_alloc(a->conn, 0, bufs, 2, &n, 5000));
	CHECK(n == 6 && bufs[0].len == 2048 && bufs[2].len == 904 && !bufs[2].flags);
	OK(memif_set_next_free_buffer(a->conn, 0, &bufs[0]));
	CHECK(memif_buffer_alloc(a->conn, 0, bufs, RING, &n, 5000) == MEMIF_ERR_NOBUF_RING);
	CHECK(n == RING / 3 * 3 && bufs[n - 1].len == 904);
	OK(memif_set_next_free_buffer(a->conn, 0, &bufs[0]));
}

/* The client sends received buffers back without copying them. */
static void zero_copy(struct end *server, struct end *client)
{
	memif_buffer_t bufs[4];
	uint16_t n = 0;
	for (uint32_t round = 0; round < 500; round++) {
		OK(memif_refill_queue(client->conn, 0, -1, 128));
		send_frame(server, 300, round);
		OK(memif_rx_burst(client->conn, 0, bufs, 4, &n));
		CHECK(n == 1 && bufs[0].len == 300 && same(bufs[0].data, 300, round, 0));
		void *data = bufs[0].data;
		OK(memif_buffer_enq_tx(client->conn, 0, bufs, 1, &n));
		CHECK(n == 1 && bufs[0].data == data);
		/* The headroom is there to be used. */
		bufs[0].data = (uint8_t *)bufs[0].data - 0;
		OK(memif_tx_burst(client->conn, 0, bufs, 1, &n));
		expect_frame(server, 300, round);
	}
	CHECK(memif_buffer_enq_tx(server->conn, 0, bufs, 1, &n) == MEMIF_ERR_INVAL_ARG);
	CHECK(memif_buffer_requeue(server->conn, bufs, bufs) == MEMIF_ERR_INVAL_ARG);
}

static void requeue(struct end *server, struct end *client)
{
	memif_buffer_t in[2], out[2];
	uint16_t n = 0;
	OK(memif_refill_queue(client->conn, 0, -1, 0));
	send_frame(server, 100, 1);
	OK(memif_rx_burst(client->conn, 0, in, 2, &n));
	OK(memif_buffer_alloc(client->conn, 0, out, 1, &n, 100));
	void *received = in[0].data;
	OK(memif_buffer_requeue(client->conn, &in[0], &out[0]));
	/* Now the received bytes sit in the transmit slot. */
	CHECK(in[0].data == received);
	OK(memif_tx_burst(client->conn, 0, in, 1, &n));
	expect_frame(server, 100, 1);
	OK(memif_refill_queue(client->conn, 0, 1, 0));
	CHECK(memif_buffer_requeue(client->conn, &in[0], &out[0]) == MEMIF_ERR_INVAL_ARG);
}

static void details(struct end *server, struct end *client)
{
	static char text[4096];
	memif_details_t md;
	memif_ring_details_t *rd = malloc(sizeof(*rd) + RING * sizeof(memif_desc_details_t));
	OK(memif_get_details(server->conn, &md, text, sizeof(text)));
	CHECK(strcmp((char *)md.if_name, "srv") == 0 && strcmp((char *)md.inst_name, "check") == 0);
	CHECK(strcmp((char *)md.remote_if_name, "cli") == 0 && md.id == 5 && md.role == 0);
	CHECK(strcmp((char *)md.secret, "hush") == 0 && md.link_up_down == 1);
	CHECK(md.socket_path[0] == '@' && md.regions_num == 1 && md.regions[0].size > 0);
	CHECK(md.rx_queues_num == 1 && md.rx_queues[0].ring_size == RING);
	CHECK(md.rx_queues[0].flags & MEMIF_QUEUE_FLAG_POLLING);
	CHECK(md.tx_queues_num == 1 && md.tx_queues[0].buffer_size == 2048);
	CHECK(memif_get_details(server->conn, &md, text, 20) == MEMIF_ERR_NOBUF_DET);
	OK(memif_get_details(client->conn, &md, text, sizeof(text)));
	CHECK(md.role == 1 && strcmp((char *)md.remote_if_name, "srv") == 0);
	uint16_t head = md.tx_queues[0].head;
	OK(memif_get_tx_ring_details(client->conn, rd, 0, RING));
	CHECK(rd->head == head && rd->ndesc == RING && rd->offset != NULL);
	OK(memif_get_rx_ring_details(server->conn, rd, 0, RING));
	CHECK(rd->head == head && rd->tail == head);
	OK(memif_get_tx_ring_details(server->conn, rd, 0, RING));
	uint16_t tail = rd->tail;
	OK(memif_get_rx_ring_details(client->conn, rd, 0, RING));
	CHECK(rd->tail == tail && rd->ndesc == RING);
	CHECK(memif_get_rx_ring_details(server->conn, rd, 0, RING - 1) == MEMIF_ERR_INVAL_ARG);
	CHECK(memif_get_tx_ring_details(server->conn, rd, 1, RING) == MEMIF_ERR_QID);
	free(rd);
}

/* An interface without a socket is on the default one. */
static void default_socket(void)
{
	struct end end = {0};
	memif_conn_args_t args = {.interface_id = 9};
	memif_socket_handle_t sock;
	OK(memif_create(&end.conn, &args, up, down, NULL, &end));
	sock = memif_get_socket_handle(end.conn);
	CHECK(sock && strcmp(memif_get_socket_path(sock), MEMIF_DEFAULT_SOCKET_PATH) == 0);
	OK(memif_poll_event(sock, 0));
	OK(memif_delete(&end.conn));
	args.mode = 3;
	CHECK(memif_create(&end.conn, &args, up, down, NULL, &end) == MEMIF_ERR_MODE);
}

static void *cancel(void *sock)
{
	OK(memif_cancel_poll_event(sock));
	return NULL;
}

int main(int argc, char **argv)
{
	struct end server = {0}, client = {0};
	pthread_t thread;
	int fd = -1;
	CHECK(argc == 2);
	CHECK(memif_get_version() == 0x0200 && strcmp(memif_get_version_str(), "2.0") == 0);
	CHECK(strlen(memif_strerror(MEMIF_ERR_QID)) > 0 && strlen(memif_strerror(99)) > 0);
	make(&server, argv[1], 1);
	CHECK(memif_get_listener_fd(server.sock) >= 0);
	make(&client, argv[1], 0);
	CHECK(memif_get_listener_fd(client.sock) == -1);
	CHECK(memif_delete_socket(&client.sock) == MEMIF_ERR_INVAL_ARG);
	WAIT(server.ups && client.ups, poll_both(&server, &client));
	default_socket();
	frames(&server, &client);
	limits(&client, &server);
	limits(&server, &client);
	zero_copy(&server, &client);
	requeue(&server, &client);
	details(&server, &client);
	struct end *both[] = {&server, &client};
	for (int i = 0; i < 2; i++) {
		OK(memif_get_queue_efd(both[i]->conn, 0, &fd));
		CHECK(fd >= 0 && memif_get_queue_efd(both[i]->conn, 3, &fd) == MEMIF_ERR_QID);
		CHECK(memif_request_connection(both[i]->conn) == MEMIF_ERR_ALRCONN);
		OK(memif_set_connection_request_timer(both[i]->sock, (struct itimerspec){0}));
		/* A waiting call is cancelled from another thread. */
		CHECK(pthread_create(&thread, NULL, cancel, both[i]->sock) == 0);
		CHECK(memif_poll_event(both[i]->sock, -1) == MEMIF_ERR_POLL_CANCEL);
		pthread_join(thread, NULL);
	}
	/* The server goes; the client hears of it, asks again, and is refused. */
	OK(memif_delete(&server.conn));
	CHECK(server.conn == NULL && server.downs == 1);
	WAIT(client.downs, OK(memif_poll_event(client.sock, 10)));
	CHECK(memif_request_connection(client.conn) == MEMIF_ERR_CONNREFUSED);
	uint16_t n = 0;
	memif_buffer_t buf;
	CHECK(memif_rx_burst(client.conn, 0, &buf, 1, &n) == MEMIF_ERR_DISCONNECTED);
	OK(memif_delete(&client.conn));
	OK(memif_delete_socket(&client.sock));
	OK(memif_delete_socket(&server.sock));
	CHECK(client.sock == NULL && memif_delete(&client.conn) == MEMIF_ERR_NOCONN);
	puts("ok");
	return 0;
}
