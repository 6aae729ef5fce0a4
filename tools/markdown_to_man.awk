# The Markdown of docs/ as a manual page: headings, paragraphs, lists, fenced blocks, tables (a row
# becomes a tagged paragraph), `code`, **bold**, *emphasis*, [links](to). Any POSIX awk.
# Usage: awk -v name=N -v section=S -v version=V -v summary=TEXT -f markdown_to_man.awk PAGE.md
function plain(text) {
    gsub(/\\/, "\\e", text)
    gsub(/-/, "\\-", text)
    return text
}
function inline(text,    out, at, length_) {
    text = plain(text)
    gsub(/\]\([^)]*\)/, "]", text)
    out = ""
    while (match(text, /`[^`]*`/)) {
        at = RSTART # words() matches, too
        length_ = RLENGTH
        out = out words(substr(text, 1, at - 1)) "\\fB" substr(text, at + 1, length_ - 2) "\\fR"
        text = substr(text, at + length_)
    }
    return out words(text)
}
# Emphasis and links outside of code.
function words(text) {
    while (match(text, /\*\*[^*]+\*\*/)) {
        text = substr(text, 1, RSTART - 1) "\\fB" substr(text, RSTART + 2, RLENGTH - 4) "\\fR" \
            substr(text, RSTART + RLENGTH)
    }
    while (match(text, /\*[^* ][^*]*\*/)) {
        text = substr(text, 1, RSTART - 1) "\\fI" substr(text, RSTART + 1, RLENGTH - 2) "\\fR" \
            substr(text, RSTART + RLENGTH)
    }
    while (match(text, /\[[^]]+\]/) && substr(text, RSTART + 1, RLENGTH - 2) ~ /\.md$/) {
        text = substr(text, 1, RSTART - 1) substr(text, RSTART + 1, RLENGTH - 2) \
            substr(text, RSTART + RLENGTH)
    }
    return text
}
# A line that begins with a dot or a quote would be a request.
function put(text) {
    print (text ~ /^[.']/ ? "\\&" : "") text
}
function row(line, head,    cells, count, i, cell, rest) {
    gsub(/\\\|/, "\001", line)
    sub(/^\|/, "", line)
    sub(/\|[ \t]*$/, "", line)
    count = split(line, cells, "|")
    rest = ""
    for (i = 1; i <= count; i++) {
        cell = cells[i]
        gsub(/\001/, "|", cell)
        gsub(/^[ \t]+|[ \t]+$/, "", cell)
        cells[i] = inline(cell)
        if (i > 1 && cells[i] != "") {
            rest = rest (rest == "" ? "" : "; ") cells[i]
        }
    }
    if (cells[1] == "" && rest == "") {
        return
    }
    print ".TP"
    put(head ? "\\fI" cells[1] "\\fR" : cells[1])
    put(rest == "" ? "\\&" : head ? "\\fI" rest "\\fR" : rest)
}
BEGIN {
    printf ".TH %s %s \"\" \"espalier %s\" \"File Formats\"\n", plain(toupper(name)), section, version
    printf ".SH NAME\n%s \\- %s\n.SH DESCRIPTION\n", plain(name), plain(summary)
}
/^```/ {
    fenced = !fenced
    print fenced ? ".PP\n.RS 2\n.nf" : ".fi\n.RE"
    fresh = 0
    next
}
fenced {
    put(plain($0))
    next
}
/^# / { next } # the page's own title
/^## / {
    print ".SH " inline(toupper(substr($0, 4)))
    fresh = 0
    in_table = 0
    next
}
/^##+ / {
    sub(/^#+ /, "")
    print ".SS " inline($0)
    fresh = 0
    in_table = 0
    next
}
/^\|/ {
    if ($0 !~ /^\|[-:| \t]+\|[ \t]*$/) {
        row($0, !in_table)
    }
    in_table = 1
    next
}
/^[ \t]*$/ {
    fresh = 1
    in_table = 0
    next
}
/^[-*] / {
    print ".IP \\(bu 2"
    put(inline(substr($0, 3)))
    fresh = 0
    next
}
{
    if (fresh) {
        print ".PP"
    }
    fresh = 0
    sub(/^[ \t]+/, "")
    put(inline($0))
}
