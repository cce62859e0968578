/* SPDX-License-Identifier: Apache-2.0
 *
 * libmemif.h: memif for C, source- and binary-compatible with libmemif 4.0.
 *
 * A program makes a socket, makes interfaces on it, waits for events, and exchanges buffers with
 * the peer in shared memory. The server (is_master = 1) listens; the client connects and brings
 * the memory. All functions return MEMIF_ERR_SUCCESS or another memif_err_t unless said otherwise.
 *
 * Threads: one at a time per socket and its interfaces, except that each queue may have a thread
 * of its own while its interface is connected.
 */
#ifndef _LIBMEMIF_H_
#define _LIBMEMIF_H_

#include <stdint.h>
#include <sys/timerfd.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LIBMEMIF_VERSION "4.0"
/* Name of a program that gives none. */
#define MEMIF_DEFAULT_APP_NAME "libmemif-app"
#define MEMIF_DEFAULT_SOCKET_PATH "/run/vpp/memif.sock"
#define MEMIF_DEFAULT_RING_SIZE 1024
#define MEMIF_DEFAULT_LOG2_RING_SIZE 10
#define MEMIF_DEFAULT_RX_QUEUES 1
#define MEMIF_DEFAULT_TX_QUEUES 1
#define MEMIF_DEFAULT_BUFFER_SIZE 2048

typedef enum {
	MEMIF_ERR_SUCCESS = 0,
	MEMIF_ERR_SYSCALL,         /* a system call failed */
	MEMIF_ERR_CONNREFUSED,     /* nobody listens */
	MEMIF_ERR_ACCES,           /* permission denied */
	MEMIF_ERR_NO_FILE,         /* no such file */
	MEMIF_ERR_FILE_LIMIT,      /* the system is out of descriptors */
	MEMIF_ERR_PROC_FILE_LIMIT, /* the process is out of descriptors */
	MEMIF_ERR_ALREADY,         /* under way already */
	MEMIF_ERR_AGAIN,           /* try again */
	MEMIF_ERR_BAD_FD,          /* not an open descriptor */
	MEMIF_ERR_NOMEM,           /* out of memory */
	MEMIF_ERR_INVAL_ARG,       /* invalid argument */
	MEMIF_ERR_NOCONN,          /* the handle is null */
	MEMIF_ERR_CONN,            /* the handle is in use */
	MEMIF_ERR_CB_FDUPDATE,     /* the descriptor callback failed */
	MEMIF_ERR_FILE_NOT_SOCK,   /* not a socket */
	MEMIF_ERR_NO_SHMFD,        /* ADD_REGION without a descriptor */
	MEMIF_ERR_COOKIE,          /* wrong cookie in a ring */
	MEMIF_ERR_NOBUF_RING,      /* the ring is full */
	MEMIF_ERR_NOBUF,           /* more buffers wait than were asked for */
	MEMIF_ERR_NOBUF_DET,       /* no room for all details */
	MEMIF_ERR_INT_WRITE,       /* the peer could not be signalled */
	MEMIF_ERR_MFMSG,           /* malformed message */
	MEMIF_ERR_QID,             /* no such queue */
	MEMIF_ERR_PROTO,           /* other protocol version */
	MEMIF_ERR_ID,              /* no such interface id, or taken */
	MEMIF_ERR_ACCSLAVE,        /* clients do not accept */
	MEMIF_ERR_ALRCONN,         /* connected already */
	MEMIF_ERR_MODE,            /* other mode */
	MEMIF_ERR_SECRET,          /* wrong secret */
	MEMIF_ERR_NOSECRET,        /* secret required */
	MEMIF_ERR_MAXREG,          /* too many regions */
	MEMIF_ERR_MAXRING,         /* too many rings */
	MEMIF_ERR_NO_INTFD,        /* ADD_RING without an eventfd */
	MEMIF_ERR_DISCONNECT,      /* the peer disconnects */
	MEMIF_ERR_DISCONNECTED,    /* not connected */
	MEMIF_ERR_UNKNOWN_MSG,     /* message of unknown type */
	MEMIF_ERR_POLL_CANCEL,     /* memif_cancel_poll_event was called */
	MEMIF_ERR_MAX_RING,        /* ring too large */
	MEMIF_ERR_PRIVHDR,         /* private headers are not supported */
} memif_err_t;

typedef enum {
	MEMIF_FD_EVENT_READ = 1 << 0,
	MEMIF_FD_EVENT_WRITE = 1 << 1,
	MEMIF_FD_EVENT_ERROR = 1 << 2,
	MEMIF_FD_EVENT_DEL = 1 << 3, /* stop waiting for this descriptor */
	MEMIF_FD_EVENT_MOD = 1 << 4,
} memif_fd_event_type_t;

typedef enum {
	MEMIF_INTERFACE_MODE_ETHERNET = 0,
	MEMIF_INTERFACE_MODE_IP,
	MEMIF_INTERFACE_MODE_PUNT_INJECT, /* frames of the program's own kind */
} memif_interface_mode_t;

typedef enum {
	MEMIF_RX_MODE_INTERRUPT = 0,
	MEMIF_RX_MODE_POLLING,
} memif_rx_mode_t;

typedef void *memif_socket_handle_t;
typedef void *memif_conn_handle_t;

/* A descriptor to wait for. When it is ready, hand private_ctx to memif_control_fd_handler. */
typedef struct {
	int fd;
	memif_fd_event_type_t type;
	void *private_ctx;
} memif_fd_event_t;

/* The library calls these; they return 0. ctx is what the socket or interface was made with. */
typedef int(memif_control_fd_update_t)(memif_fd_event_t event, void *ctx);
typedef int(memif_connection_update_t)(memif_conn_handle_t conn, void *ctx);
typedef int(memif_on_interrupt_t)(memif_conn_handle_t conn, void *ctx, uint16_t qid);

/* Memory of the program's own. A client's: give it, place a buffer in it. A server's, for regions
 * behind the first: map what a client brought. Both: take it back, and close its fd. */
typedef int(memif_add_external_region_t)(void **addr, uint32_t size, int *fd, void *ctx);
typedef uint32_t(memif_get_external_buffer_offset_t)(void *ctx);
typedef void *(memif_get_external_region_addr_t)(uint32_t size, int fd, void *ctx);
typedef int(memif_del_external_region_t)(void *addr, uint32_t size, int fd, void *ctx);

/* Accepted for compatibility and not used. */
typedef void *(memif_alloc_t)(size_t size);
typedef void *(memif_realloc_t)(void *ptr, size_t size);
typedef void(memif_free_t)(void *ptr);

typedef struct {
	char path[108];    /* a path, or '@' and an abstract name; empty: the default path */
	char app_name[32]; /* empty: the default name */
	/* How often disconnected clients ask for a connection; zero: only when told to. */
	struct itimerspec connection_request_timer;
	/* NULL: the library waits by itself, in memif_poll_event. */
	memif_control_fd_update_t *on_control_fd_update;
	memif_alloc_t *alloc;
	memif_realloc_t *realloc;
	memif_free_t *free;
} memif_socket_args_t;

typedef struct {
	memif_socket_handle_t socket; /* NULL: one on the default path, made on first use */
	uint8_t secret[24];     /* optional, NUL-terminated */
	uint8_t num_s2m_rings;  /* client to server; 0: 1 */
	uint8_t num_m2s_rings;  /* server to client; 0: 1 */
	uint16_t buffer_size;   /* 0: 2048 */
	uint8_t log2_ring_size; /* 0: 10 */
	uint8_t is_master;      /* 1: server, 0: client */
	uint32_t interface_id;
	uint8_t interface_name[32];
	memif_interface_mode_t mode : 8;
} memif_conn_args_t;

/* The bytes of one descriptor. */
typedef struct {
	uint16_t desc_index;
	void *queue;
	uint32_t len;
#define MEMIF_BUFFER_FLAG_NEXT (1 << 0) /* the frame goes on in the next buffer */
#define MEMIF_BUFFER_FLAG_RX (1 << 1)
	uint8_t flags;
	void *data;
} memif_buffer_t;

typedef struct {
	uint8_t region;
	uint16_t qid;
	uint32_t ring_size;
#define MEMIF_QUEUE_FLAG_POLLING 1
	uint16_t flags;
	uint16_t head;
	uint16_t tail;
	uint16_t buffer_size;
} memif_queue_details_t;

typedef struct {
	uint8_t index;
	void *addr;
	uint32_t size;
	int fd;
	uint8_t is_external;
} memif_region_details_t;

typedef struct {
	uint8_t *if_name;
	uint8_t *inst_name;
	uint8_t *remote_if_name;
	uint8_t *remote_inst_name;
	uint32_t id;
	uint8_t *secret; /* NULL: none */
	uint8_t role;    /* 0: server, 1: client */
	uint8_t mode;
	uint8_t *socket_path; /* 108 bytes */
	uint8_t regions_num;
	memif_region_details_t *regions;
	uint8_t rx_queues_num;
	uint8_t tx_queues_num;
	memif_queue_details_t *rx_queues;
	memif_queue_details_t *tx_queues;
	uint8_t *error;       /* why it was disconnected last */
	uint8_t link_up_down; /* 1: connected */
} memif_details_t;

typedef struct memif_desc_details {
	uint16_t flags;
	uint16_t region;
	uint32_t length;
	uint32_t offset;
	uint32_t metadata;
} memif_desc_details_t;

typedef struct memif_ring_details {
	uint16_t head;
	uint16_t tail;
	uint16_t flags;
	void *offset;
	uint16_t ndesc;
	memif_desc_details_t descs[];
} memif_ring_details_t;

/* The protocol's version: 0x0200, "2.0". */
uint16_t memif_get_version(void);
const char *memif_get_version_str(void);
char *memif_strerror(int err_code);

/* Sockets. Deleting one that has interfaces is MEMIF_ERR_INVAL_ARG. */
int memif_create_socket(memif_socket_handle_t *sock, memif_socket_args_t *args, void *private_ctx);
int memif_delete_socket(memif_socket_handle_t *sock);
memif_socket_handle_t memif_get_socket_handle(memif_conn_handle_t conn);
const char *memif_get_socket_path(memif_socket_handle_t sock);
const char *memif_get_socket_filename(memif_socket_handle_t sock);
/* The listening descriptor or -1; or one made by somebody else, which then is the library's. */
int memif_get_listener_fd(memif_socket_handle_t sock);
int memif_set_listener_fd(memif_socket_handle_t sock, int fd);
int memif_set_connection_request_timer(memif_socket_handle_t sock, struct itimerspec timer);
void memif_register_external_region(memif_socket_handle_t sock, memif_add_external_region_t *add,
				    memif_get_external_region_addr_t *get_addr,
				    memif_del_external_region_t *del,
				    memif_get_external_buffer_offset_t *get_offset);

/* Events: the program's own loop, or the library's (timeout in milliseconds, -1 for ever; one
 * event per call). Cancelling is allowed from any thread. */
int memif_control_fd_handler(void *ptr, memif_fd_event_type_t events);
int memif_poll_event(memif_socket_handle_t sock, int timeout);
#define MEMIF_HAVE_CANCEL_POLL_EVENT 1
int memif_cancel_poll_event(memif_socket_handle_t sock);

/* Interfaces. A server that is not there yet is no error for memif_create. Deleting disconnects,
 * calls on_disconnect and sets the handle to NULL. on_interrupt may be NULL. */
int memif_create(memif_conn_handle_t *conn, memif_conn_args_t *args,
		 memif_connection_update_t *on_connect, memif_connection_update_t *on_disconnect,
		 memif_on_interrupt_t *on_interrupt, void *private_ctx);
int memif_request_connection(memif_conn_handle_t conn);
int memif_delete(memif_conn_handle_t *conn);
int memif_get_details(memif_conn_handle_t conn, memif_details_t *md, char *buf, ssize_t buflen);
int memif_get_rx_ring_details(memif_conn_handle_t conn, memif_ring_details_t *rd, uint16_t qid,
			      uint16_t ndesc);
int memif_get_tx_ring_details(memif_conn_handle_t conn, memif_ring_details_t *rd, uint16_t qid,
			      uint16_t ndesc);

/* Receiving: take buffers, use them, give them back with memif_refill_queue, oldest first. A client
 * receives nothing before its first refill (count 65535: all). MEMIF_ERR_NOBUF: more wait. */
int memif_rx_burst(memif_conn_handle_t conn, uint16_t qid, memif_buffer_t *bufs, uint16_t count,
		   uint16_t *rx);
int memif_refill_queue(memif_conn_handle_t conn, uint16_t qid, uint16_t count, uint16_t headroom);
int memif_set_rx_mode(memif_conn_handle_t conn, memif_rx_mode_t rx_mode, uint16_t qid);
int memif_get_queue_efd(memif_conn_handle_t conn, uint16_t qid, int *fd);

/* Sending: allocate buffers for count frames, fill them, send them in the order of their allocation.
 * A frame longer than a buffer takes several: bufs must have room for all of them, and count_out says
 * how many buffers there are. */
int memif_buffer_alloc(memif_conn_handle_t conn, uint16_t qid, memif_buffer_t *bufs, uint16_t count,
		       uint16_t *count_out, uint16_t size);
int memif_tx_burst(memif_conn_handle_t conn, uint16_t qid, memif_buffer_t *bufs, uint16_t count,
		   uint16_t *tx);
int memif_set_next_free_buffer(memif_conn_handle_t conn, uint16_t qid, memif_buffer_t *buf);

/* Clients only: move received buffers to a transmit queue without copying; exchange the slots of
 * two buffers. */
int memif_buffer_enq_tx(memif_conn_handle_t conn, uint16_t qid, memif_buffer_t *bufs,
			uint16_t count, uint16_t *count_out);
int memif_buffer_requeue(memif_conn_handle_t conn, memif_buffer_t *buf_a, memif_buffer_t *buf_b);

/* Not in libmemif: keeps a peer that truncates its memory from killing this process, by a SIGBUS
 * handler for the whole process. Never installed unless this is called. */
int memif_contain_sigbus(void);

#ifdef __cplusplus
}
#endif

#endif
