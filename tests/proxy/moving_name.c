/* The system's resolver, with one name more: its address stands in a file, and may change. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int look_up(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    look_up *real = (look_up *)dlsym(RTLD_NEXT, "getaddrinfo");
    char address[64] = "";
    if (node && strcmp(node, "moving.example") == 0) {
        FILE *file = fopen(getenv("MOVING_NAME_ADDRESS"), "r");
        if (!file)
            return EAI_NONAME;
        if (!fgets(address, sizeof address, file))
            address[0] = 0;
        fclose(file);
        address[strcspn(address, "\n")] = 0;
        node = address;
    }
    return real(node, service, hints, found);
}
