/* SPDX-License-Identifier: Apache-2.0 */
/* Ends before anybody can look. */
int main(void) { return 17; }
