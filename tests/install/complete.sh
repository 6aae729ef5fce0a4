# Answers of a bash completion, one a line: complete.sh COMPLETION_FILE LINE, the cursor at its end.
# COMP_WORDS is broken at the characters where readline breaks.
source "$1"
COMP_LINE=$2
COMP_POINT=${#COMP_LINE}
COMP_WORDBREAKS=$' \t\n"\'@><=;|&(:'
read -ra COMP_WORDS <<<"$(sed 's/[:=@]/ & /g' <<<"$COMP_LINE")"
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_espalier
[ ${#COMPREPLY[@]} -eq 0 ] || printf '%s\n' "${COMPREPLY[@]}"
