/* Pages that are made from the option tables when the program is built. */
#ifndef CLI_GENERATE_H
#define CLI_GENERATE_H

#include <stdbool.h>
#include <stdio.h>

/* what: "man" (roff) or "bash" (completion). False when it is neither. */
bool generate(const char *what, FILE *stream);

#endif
