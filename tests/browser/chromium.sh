#!/usr/bin/env bash
# Print the path of a Chromium; install Debian's where there is none, else Playwright's own.
set -euo pipefail
find_one() { command -v chromium || command -v chromium-browser || command -v google-chrome || true; }
found=$(find_one)
if [ -z "$found" ] && command -v apt-get > /dev/null; then
  root=""; [ "$(id -u)" = 0 ] || root="sudo -n"
  if $root true 2> /dev/null; then
    { $root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $root apt-get install -y -qq --no-install-recommends \
      chromium fonts-noto-cjk; } > /dev/null 2>&1 || echo "apt-get could not install chromium" >&2
  fi
  found=$(find_one)
fi
if [ -z "$found" ]; then
  "$1/bin/python" -m playwright install chromium >&2
  found=$("$1/bin/python" -c 'from playwright.sync_api import sync_playwright as s
with s() as p: print(p.chromium.executable_path)')
fi
echo "$found"
