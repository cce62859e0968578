/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The C side of dpdk-sys: what DPDK offers only as static inline functions, macros or bit fields.
 *
 * Everything the packet path calls takes a whole burst, so that the call costs once per burst.
 * Mbuf fields are handed over as offsets (the BL_OFF_ constants) and read by Rust directly: the
 * names and unions of struct rte_mbuf differ between DPDK releases, offsetof does not care.
 */
#ifndef BOWLINE_SHIM_H
#define BOWLINE_SHIM_H

#include <stddef.h>
#include <stdint.h>

#include <rte_dmadev.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_version.h>

#if RTE_VERSION < RTE_VERSION_NUM(22, 11, 0, 0)
#error "Bowline needs DPDK 22.11 or newer: install a newer libdpdk-dev"
#endif

enum bl_offset {
	BL_OFF_BUF_ADDR = offsetof(struct rte_mbuf, buf_addr),
	BL_OFF_DATA_OFF = offsetof(struct rte_mbuf, data_off),
	BL_OFF_NB_SEGS = offsetof(struct rte_mbuf, nb_segs),
	BL_OFF_PORT = offsetof(struct rte_mbuf, port),
	BL_OFF_OL_FLAGS = offsetof(struct rte_mbuf, ol_flags),
	BL_OFF_PACKET_TYPE = offsetof(struct rte_mbuf, packet_type),
	BL_OFF_PKT_LEN = offsetof(struct rte_mbuf, pkt_len),
	BL_OFF_DATA_LEN = offsetof(struct rte_mbuf, data_len),
	BL_OFF_VLAN_TCI = offsetof(struct rte_mbuf, vlan_tci),
	BL_OFF_RSS = offsetof(struct rte_mbuf, hash),
	BL_OFF_BUF_LEN = offsetof(struct rte_mbuf, buf_len),
	BL_OFF_NEXT = offsetof(struct rte_mbuf, next),
	BL_OFF_TX_OFFLOAD = offsetof(struct rte_mbuf, tx_offload),
};

enum bl_limit {
	BL_HEADROOM_BYTES = RTE_PKTMBUF_HEADROOM,
	BL_L2_LEN_BITS = RTE_MBUF_L2_LEN_BITS,
	BL_L3_LEN_BITS = RTE_MBUF_L3_LEN_BITS,
	BL_L4_LEN_BITS = RTE_MBUF_L4_LEN_BITS,
	BL_MEMPOOL_CACHE_MAX = RTE_MEMPOOL_CACHE_MAX_SIZE,
	BL_VERSION_YEAR = RTE_VER_YEAR,
	BL_VERSION_MONTH = RTE_VER_MONTH,
};

/* The bits of rte_mbuf.ol_flags that Bowline reads or sets. */
static const uint64_t BL_RX_IP_CKSUM_MASK = RTE_MBUF_F_RX_IP_CKSUM_MASK;
static const uint64_t BL_RX_IP_CKSUM_GOOD = RTE_MBUF_F_RX_IP_CKSUM_GOOD;
static const uint64_t BL_RX_IP_CKSUM_BAD = RTE_MBUF_F_RX_IP_CKSUM_BAD;
static const uint64_t BL_RX_L4_CKSUM_MASK = RTE_MBUF_F_RX_L4_CKSUM_MASK;
static const uint64_t BL_RX_L4_CKSUM_GOOD = RTE_MBUF_F_RX_L4_CKSUM_GOOD;
static const uint64_t BL_RX_L4_CKSUM_BAD = RTE_MBUF_F_RX_L4_CKSUM_BAD;
static const uint64_t BL_RX_L4_CKSUM_NONE = RTE_MBUF_F_RX_L4_CKSUM_NONE;
static const uint64_t BL_RX_VLAN_STRIPPED = RTE_MBUF_F_RX_VLAN_STRIPPED;
static const uint64_t BL_RX_RSS_HASH = RTE_MBUF_F_RX_RSS_HASH;
static const uint64_t BL_TX_IP_CKSUM = RTE_MBUF_F_TX_IP_CKSUM;
static const uint64_t BL_TX_IPV4 = RTE_MBUF_F_TX_IPV4;
static const uint64_t BL_TX_IPV6 = RTE_MBUF_F_TX_IPV6;
static const uint64_t BL_TX_TCP_CKSUM = RTE_MBUF_F_TX_TCP_CKSUM;
static const uint64_t BL_TX_UDP_CKSUM = RTE_MBUF_F_TX_UDP_CKSUM;
static const uint64_t BL_TX_TCP_SEG = RTE_MBUF_F_TX_TCP_SEG;
static const uint64_t BL_TX_VLAN = RTE_MBUF_F_TX_VLAN;

/* The bits of rte_eth_dev_info.{rx,tx}_offload_capa that Bowline asks for. */
static const uint64_t BL_OFFLOAD_RX_VLAN_STRIP = RTE_ETH_RX_OFFLOAD_VLAN_STRIP;
static const uint64_t BL_OFFLOAD_RX_IPV4_CKSUM = RTE_ETH_RX_OFFLOAD_IPV4_CKSUM;
static const uint64_t BL_OFFLOAD_RX_UDP_CKSUM = RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
static const uint64_t BL_OFFLOAD_RX_TCP_CKSUM = RTE_ETH_RX_OFFLOAD_TCP_CKSUM;
static const uint64_t BL_OFFLOAD_RX_SCATTER = RTE_ETH_RX_OFFLOAD_SCATTER;
static const uint64_t BL_OFFLOAD_RX_RSS_HASH = RTE_ETH_RX_OFFLOAD_RSS_HASH;
static const uint64_t BL_OFFLOAD_TX_VLAN_INSERT = RTE_ETH_TX_OFFLOAD_VLAN_INSERT;
static const uint64_t BL_OFFLOAD_TX_IPV4_CKSUM = RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
static const uint64_t BL_OFFLOAD_TX_UDP_CKSUM = RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
static const uint64_t BL_OFFLOAD_TX_TCP_CKSUM = RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
static const uint64_t BL_OFFLOAD_TX_TCP_TSO = RTE_ETH_TX_OFFLOAD_TCP_TSO;
static const uint64_t BL_OFFLOAD_TX_MULTI_SEGS = RTE_ETH_TX_OFFLOAD_MULTI_SEGS;

/* What rte_eth_dev_info says, without its nested structures. */
struct bl_eth_info {
	uint32_t if_index;
	uint32_t max_rx_pktlen;
	uint32_t min_rx_bufsize;
	uint16_t min_mtu, max_mtu;
	uint16_t max_rx_queues, max_tx_queues;
	uint16_t rx_desc_max, rx_desc_min, rx_desc_align;
	uint16_t tx_desc_max, tx_desc_min, tx_desc_align;
	uint16_t reta_size;
	uint64_t rx_offload_capa, tx_offload_capa;
	uint64_t rss_hash_functions;
	char driver[64];
};

struct bl_eth_conf {
	uint16_t rx_queues, tx_queues;
	uint32_t mtu;
	uint64_t rx_offloads, tx_offloads;
	uint64_t rss_hash_functions; /* 0: no RSS */
	uint8_t rx_interrupts;
};

struct bl_eth_link {
	uint32_t speed_mbps;
	uint8_t up, full_duplex;
};

struct bl_dma_copy {
	uint64_t source, destination; /* IO virtual addresses */
	uint32_t length_bytes;
};

int bl_errno(void);

uint16_t bl_eth_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);
uint16_t bl_eth_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);
struct rte_mempool *bl_mempool_create(const char *name, uint32_t mbufs, uint32_t cache,
				      uint16_t data_room_bytes);
int bl_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int count);
void bl_mbuf_free(struct rte_mbuf *mbuf);
void bl_mbuf_free_bulk(struct rte_mbuf **mbufs, unsigned int count);

int bl_eth_info(uint16_t port, struct bl_eth_info *info);
int bl_eth_configure(uint16_t port, const struct bl_eth_conf *conf);
int bl_eth_queue_setup(uint16_t port, const struct bl_eth_conf *conf, uint16_t rx_descriptors,
		       uint16_t tx_descriptors, int socket, struct rte_mempool *pool);
int bl_eth_link(uint16_t port, struct bl_eth_link *link);
int bl_eth_remove(uint16_t port);

int bl_dma_shares_addresses(int16_t device);
int bl_dma_setup(int16_t device, uint16_t descriptors);
/* Enqueues copies until the ring is full; returns how many went in. */
uint16_t bl_dma_copy(int16_t device, const struct bl_dma_copy *copies, uint16_t count);
int bl_dma_submit(int16_t device);
uint16_t bl_dma_completed(int16_t device, uint16_t count, uint16_t *last_index, uint8_t *failed);
uint16_t bl_dma_capacity(int16_t device);

#endif
