/* Functions of libraries that are opened at run time. */
#ifndef CLI_GPU_SYMBOL_H
#define CLI_GPU_SYMBOL_H

#include <dlfcn.h>
#include <stdbool.h>
#include <string.h>

/* Into *function, a pointer to a function; library NULL: nothing is found. ISO C has no conversion
 * from data to function pointers; POSIX promises that this one works. */
static inline bool gpu_symbol(void *library, const char *name, void *function)
{
    void *symbol = library != NULL ? dlsym(library, name) : NULL;
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

#endif
