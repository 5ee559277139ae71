/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets of five families: TCP to 203.0.113.7:6667, to [2001:db8::7]:443 and
 * to the abstract name @petri, a datagram "hello" to 203.0.113.9:53 by sendmsg
 * in two parts, a netlink and a packet socket, and a listener on port 31337. */
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(void)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(6667)};
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(443)};
	struct sockaddr_un un = {.sun_family = AF_UNIX, .sun_path = "\0petri"};
	struct sockaddr_nl nl = {.nl_family = AF_NETLINK, .nl_groups = 1};
	struct iovec parts[] = {{"hel", 3}, {"lo", 2}};
	struct msghdr msg = {.msg_name = &in, .msg_namelen = sizeof in, .msg_iov = parts, .msg_iovlen = 2};
	int s;

	inet_pton(AF_INET, "203.0.113.7", &in.sin_addr);
	inet_pton(AF_INET6, "2001:db8::7", &in6.sin6_addr);
	connect(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), (void *)&in, sizeof in);
	connect(socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0), (void *)&in6, sizeof in6);
	connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&un, offsetof(struct sockaddr_un, sun_path) + 6);
	inet_pton(AF_INET, "203.0.113.9", &in.sin_addr);
	in.sin_port = htons(53);
	sendmsg(socket(AF_INET, SOCK_DGRAM, 0), &msg, 0);
	bind(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), (void *)&nl, sizeof nl);
	socket(AF_PACKET, SOCK_RAW, htons(3));
	s = socket(AF_INET, SOCK_STREAM, 0);
	in.sin_addr.s_addr = 0;
	in.sin_port = htons(31337);
	bind(s, (void *)&in, sizeof in);
	listen(s, 5);
	return 0;
}
