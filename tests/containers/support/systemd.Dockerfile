# A Debian with a live systemd and Mosquitto, for tests: what docs/deploy.md finds on a machine before its first line.
FROM localhost/talaria-broker
USER root
RUN apt-get -qq update \
 && apt-get -qq install --yes --no-install-recommends systemd systemd-sysv dbus >/dev/null \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb \
 && systemctl disable mosquitto \
 && userdel talaria && rm -rf /var/lib/talaria /etc/talaria
# As on a machine: without it nothing that systemd mounts for a service, credentials above all, gets there.
ENTRYPOINT ["/bin/sh", "-c", "mount --make-rshared / && exec /sbin/init"]
