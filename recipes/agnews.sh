#!/usr/bin/env bash
# The same as quickstart.sh on a news corpus: DIR/news.csv has the class, the title and the
# description of each article, without a header (AG's corpus as it is usually given).
#
#   bash recipes/agnews.sh DIR [RECIPE.toml]
set -euo pipefail
folder=${1:?give the folder of news.csv: bash recipes/agnews.sh DIR}
news=$(realpath "$folder")/news.csv
[ -f "$news" ] || { echo "error: $news: no such file; give the folder of news.csv" >&2; exit 3; }
exec bash "$(dirname "$0")/topics.sh" "$news" 2,3 1 "${@:2}"
